"""A small Orb for all-silica zeolites, and what is known of it."""
