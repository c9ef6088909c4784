"""Annotation of finished trajectories: a verdict for each frame, in copies or files."""
