"""Finished trajectories, judged frame by frame into annotated copies and files."""
