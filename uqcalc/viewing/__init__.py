"""Reports of finished runs, and live views of running ones."""
