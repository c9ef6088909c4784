"""Parts of `rough.py`: damaged files, garbage structures, threads, and outcomes."""
