"""Kubernetes manifests, and the tools that check them."""
