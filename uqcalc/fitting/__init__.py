"""Fit of a probe: its paths, the training loop, and the weights of the paths."""
