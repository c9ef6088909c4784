"""Parts of `strategies.py`: which frames to label next."""
