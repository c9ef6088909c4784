"""Structures on which a model contradicts itself, searched along a gradient."""
