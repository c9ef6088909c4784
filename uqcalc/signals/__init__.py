"""Signals: measures of reliability that are computed from one forward pass."""
