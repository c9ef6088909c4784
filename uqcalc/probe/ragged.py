"""Sums and extremes over the atoms of each structure of a ragged batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Ragged:
    """Reduces rows of atoms, (atoms, k), to rows of structures, (structures, k).

    One structure, which is what a step of dynamics brings, takes the short way.
    """

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self.sizes = sizes
        self._lengths: torch.Tensor | None = None
        if len(sizes) > 1:
            self._lengths = torch.tensor(sizes, device=device)

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the mean over the atoms of each structure."""
        return self._reduce(rows, "mean")

    def max(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the largest value among the atoms of each structure."""
        return self._reduce(rows, "max")

    def min(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the smallest value among the atoms of each structure."""
        return self._reduce(rows, "min")

    def _reduce(self, rows: torch.Tensor, how: str) -> torch.Tensor:
        if self._lengths is None:
            if how == "mean":
                return rows.mean(dim=0, keepdim=True)
            extreme = rows.amax if how == "max" else rows.amin
            return extreme(dim=0, keepdim=True)
        return torch.segment_reduce(rows, how, lengths=self._lengths)
