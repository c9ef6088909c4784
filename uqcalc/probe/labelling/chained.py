"""Several sequences of frames as one, without reading what is read lazily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from ase import Atoms


class Chained(Sequence[Atoms]):
    """Frames of several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Atoms]]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @overload
    def __getitem__(self, index: int) -> Atoms: ...
    @overload
    def __getitem__(self, index: slice) -> list[Atoms]: ...
    def __getitem__(self, index: int | slice) -> Atoms | list[Atoms]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # IndexError where there is none
        part = int(np.searchsorted(self._ends, place, side="right"))
        first = int(self._ends[part]) - len(self._parts[part])
        return self._parts[part][place - first]
