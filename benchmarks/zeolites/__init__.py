"""Small Orbs for all-silica zeolites, and what their signals say."""
