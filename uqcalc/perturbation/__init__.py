"""Learned functional perturbations: a potential with a distribution of its results.

Zaghen et al. 2026, arXiv:2605.19939.
"""
