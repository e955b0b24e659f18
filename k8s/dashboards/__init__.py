"""Grafana dashboards as code: `python -m k8s.dashboards` writes the JSON of the monitoring component."""
