"""A fleet on one machine: gateways and model servers on hosts of their own, made of network namespaces."""
