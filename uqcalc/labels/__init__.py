"""Labelled frames: references, errors, groups, defects, features on disk."""
