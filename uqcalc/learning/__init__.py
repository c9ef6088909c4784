"""From flagged frames to labels: choose frames, and compute their reference values."""
