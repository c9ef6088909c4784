"""Small Orbs for all-silica zeolites, and readings of their signals."""
