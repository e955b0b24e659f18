"""Tools around images and manifests; each is a program of its own, run from the folder above `k8s`."""
