"""Groups of frames that belong together: a split never divides a group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from typing import Protocol, overload

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.formula import Formula

from uqcalc.errors import LabelError


class Grouped(Protocol):
    """Structures that belong to groups; a `Dataset` is an example."""

    @property
    def groups(self) -> Sequence[str]:
        """Group of each structure."""

    @property
    def group_key(self) -> str | None:
        """Key of ``atoms.info``; None if each structure is its own group."""


# Group keys that need no entry in ``atoms.info``.
BY_FORMULA = ("formula", "composition")


def reduced_formula(frame: Atoms) -> str:
    """Return the formula with the smallest whole numbers: C2H4 and C4H8 are CH2."""
    present, counts = np.unique(frame.numbers, return_counts=True)
    smallest = counts // np.gcd.reduce(counts) if len(counts) else counts
    return _formula(tuple(present.tolist()), tuple(smallest.tolist()))


@lru_cache(maxsize=10_000)
def _formula(numbers: tuple[int, ...], counts: tuple[int, ...]) -> str:
    symbols = [chemical_symbols[z] for z in numbers]
    formula = Formula.from_dict(dict(zip(symbols, counts, strict=True)))
    return str(formula.format("hill"))


def group_names(
    frames: Sequence[Atoms], key: str | None, rows: Sequence[int] | None = None
) -> list[str]:
    """Return the group of each frame; without a key each frame is its own group.

    Parameters
    ----------
    key : str, optional
        Key of ``atoms.info``. If it is "formula" or "composition" and no frame has
        such an entry, the reduced formula is the group.
    rows : sequence of int, optional
        Indices of the frames to use; by default all.

    Raises
    ------
    LabelError
        If a frame lacks the key.
    """
    wanted = range(len(frames)) if rows is None else rows
    if key is None:
        return [str(index) for index in wanted]
    if key in BY_FORMULA and not any(key in frame.info for frame in frames):
        return [reduced_formula(frames[index]) for index in wanted]
    for index in wanted:
        if key not in frames[index].info:
            msg = (
                f"frame {index} must have the group key {key!r} in info, got "
                f"{sorted(frames[index].info)}; add it or choose another key "
                "('formula' needs no entry)"
            )
            raise LabelError(msg)
    return [str(frames[index].info[key]) for index in wanted]


def divide(
    groups: Sequence[str], fractions: Sequence[float], seed: int
) -> list[list[int]]:
    """Divide frames into shares of about ``fractions``, in whole groups; return rows.

    Groups are taken by size, largest first, in random order among equal sizes. Each
    goes to the share that is filled least. Shares that it would overfill by more than a
    median group are used only if there is no other.

    Raises
    ------
    LabelError
        If there are fewer groups than shares.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    if len(members) < len(fractions):
        raise LabelError(_too_few_groups(len(fractions), list(members)))
    names = sorted(members)
    np.random.default_rng(seed).shuffle(names)
    names.sort(key=lambda name: -len(members[name]))
    goal = np.asarray(fractions) / sum(fractions) * len(groups)
    typical = np.median([len(rows) for rows in members.values()])
    shares: list[list[int]] = [[] for _ in fractions]
    for left, name in zip(range(len(names), 0, -1), names, strict=True):
        size = len(members[name])
        filled = np.array([len(share) for share in shares])
        load = filled / goal
        if left == np.count_nonzero(filled == 0):  # one for each empty share
            load[filled > 0] = np.inf
        elif (fits := filled + size <= goal + typical).any():
            load[~fits] = np.inf
        else:
            load = (filled + size) / goal
        shares[int(np.argmin(load))].extend(members[name])
    return [sorted(share) for share in shares]


def _too_few_groups(shares: int, groups: Sequence[str]) -> str:
    single = ""
    if len(groups) == 1 and not groups[0].isdecimal():  # decimal names: no group key
        single = f" (one molecule only: {groups[0]!r})"
    return (
        f"labels must come in at least {shares} groups (distinct frames without a "
        f"group key) to be split, got {len(groups)}{single}; add frames of other "
        "molecules or materials, name a group key that divides these frames, or pass "
        "separate calibration and test frames"
    )


def refuse_shared_groups(train: Grouped, *held: Grouped) -> None:
    """Check that no group is in two of the sets: the report would be too good.

    Two sets are compared only if they have the same group key. Without a key, group
    names are numbers of frames and have no meaning in another set.

    Parameters
    ----------
    train : Grouped
    *held : Grouped
        Calibration and test, or test only.

    Raises
    ------
    LabelError
        If two sets share a group; the message names the sets and one group.
    """
    names = (
        ("training", "calibration", "test") if len(held) > 1 else ("training", "test")
    )
    sets = zip(names, (train, *held), strict=True)
    for (first, a), (second, b) in combinations(sets, 2):
        key = a.group_key
        if key is None or b.group_key != key:
            continue
        if shared := sorted(set(a.groups) & set(b.groups)):
            msg = (
                f"{first} and {second} frames must not share a group, got "
                f"{len(shared)} in both ({key} {shared[0]!r}); divide the frames by "
                f"{key!r}"
            )
            raise LabelError(msg)


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
        place = range(len(self))[index]  # IndexError if out of range
        part = int(np.searchsorted(self._ends, place, side="right"))
        first = int(self._ends[part]) - len(self._parts[part])
        return self._parts[part][place - first]
