"""Potentials by name, the bundled one, and MACE models without pickle."""
