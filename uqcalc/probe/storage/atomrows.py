"""One value an atom, structure after structure, in one array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray


class AtomRows(Sequence[NDArray[Any]]):
    """The values of each structure's atoms, or of some structures in any order.

    Parameters
    ----------
    flat : array (atoms of all structures,)
    ends : array (structures,)
        Where in it the atoms of each structure end.
    rows : array, optional
        Which of the structures, by default all.
    """

    def __init__(
        self,
        flat: NDArray[Any],
        ends: NDArray[np.int64],
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self.flat, self.ends = flat, ends
        self.rows = np.arange(len(ends)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> NDArray[Any]: ...
    @overload
    def __getitem__(self, index: slice) -> AtomRows: ...
    def __getitem__(self, index: int | slice) -> NDArray[Any] | AtomRows:
        if isinstance(index, slice):
            return AtomRows(self.flat, self.ends, self.rows[index])
        row = self.rows[index]
        first = self.ends[row - 1] if row else 0
        return self.flat[first : self.ends[row]]

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> AtomRows:
        """Return those at ``indices``, in that order."""
        return AtomRows(self.flat, self.ends, self.rows[np.asarray(indices, int)])
