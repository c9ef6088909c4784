"""Which elements something was fitted on, asked at every step."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from ase.data import chemical_symbols


class ElementsSeen:
    """Names the elements of a structure that are not among those known.

    Parameters
    ----------
    elements : collection of int
        Atomic numbers; an empty one knows all, for want of better knowledge.
    """

    def __init__(self, elements: Collection[int]) -> None:
        self._elements = set(elements)
        self._seen = np.full(119, fill_value=not elements)
        self._seen[list(elements)] = True

    def unseen(self, numbers: np.ndarray) -> list[str]:
        """Return the symbols in ``numbers``, (atoms,), that are new."""
        if self._seen[numbers].all():  # np.unique is slow at every step
            return []
        new = set(np.unique(numbers).tolist()) - self._elements
        return [chemical_symbols[z] for z in sorted(new)]
