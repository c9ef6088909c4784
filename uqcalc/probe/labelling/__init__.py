"""What is asked of labelled frames, and which of them belong together."""
