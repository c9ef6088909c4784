"""Features of labelled structures on disk, and how they are read from there."""
