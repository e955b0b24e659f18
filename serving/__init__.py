"""Sluice's gateway, model server and rollout: everything that serves."""
