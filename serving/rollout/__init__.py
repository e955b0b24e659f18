"""Letting a new version in by evidence: plan, evidence, verdict, state machine, store, controller."""
