"""What a gateway tells of itself: metrics, logs, traces, and what it did when it stood still."""
