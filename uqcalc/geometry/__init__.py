"""Neighbours, bonds, coordination and regimes of a structure; positions alone."""
