"""Charged particles: their simulation, an EGNN, and its training; used by `nbody`."""
