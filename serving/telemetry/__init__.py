"""What a gateway reports about itself: metrics, logs, traces, and what it was doing when it stalled."""
