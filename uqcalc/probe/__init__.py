"""PROBE: a small classifier on a potential's own frozen features."""
