"""Parts of `rough.py`: bad files, garbage structures, threads, and their outcomes."""
