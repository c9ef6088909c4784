"""Locks: only one thread at a time evaluates a model, through any wrapper.

A tap is armed on the model itself, and a calculator caches its last results. So two
threads in one model or calculator would mix their results. Every evaluation holds

1. the *gate*: shared, or alone if a pass changes a setting of the whole process (MACE
   sets torch's default dtype in each pass),
2. the locks of the calculators that it uses, and
3. the locks of the torch modules in them.

They are taken in this order, after the lock of the calling wrapper, and within each
kind in the order of their creation, so that no deadlock can occur. The locks are stored
in this module, not on the objects, so that these may be pickled and copied.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar

import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.calculators.mixing import LinearCombinationCalculator


_NUMBERS = itertools.count()


@dataclass(slots=True, eq=False)
class _Lock:
    """A re-entrant lock, and its place in the order."""

    number: int = field(default_factory=lambda: next(_NUMBERS))
    lock: Any = field(default_factory=threading.RLock)


T = TypeVar("T")
_Kept = dict[int, tuple[weakref.ref[Any], T]]


def _remembered(kept: _Kept[T], thing: Any, value: T) -> T:
    """Return the value stored for ``thing``, or store ``value`` while it exists."""
    key = id(thing)
    if key not in kept:
        kept[key] = (weakref.ref(thing, lambda _: kept.pop(key, None)), value)
    return kept[key][1]


class _Locks:
    """The locks of all existing objects; a module shares those of its sub-modules.

    A sub-module has the lock of the first tree of modules that contained it. A tree
    needs the locks of all its modules, so that two trees with a common module never run
    at the same time.
    """

    def __init__(self) -> None:
        self._registry = threading.RLock()  # re-entrant: garbage collection may need it
        self._owner: _Kept[_Lock] = {}
        self._trees: _Kept[tuple[_Lock, ...]] = {}

    def of(self, thing: object) -> tuple[_Lock, ...]:
        """Return the locks that are needed for ``thing``."""
        with self._registry:
            if (known := self._trees.get(id(thing))) is not None:
                return known[1]
            own, members = _Lock(), [thing]
            if isinstance(thing, torch.nn.Module):
                members = [*thing.modules()]
            locks = [_remembered(self._owner, member, own) for member in members]
            needed = {lock.number: lock for lock in locks}
            return _remembered(self._trees, thing, tuple(needed.values()))


class _Gate:
    """Admit many threads, or one alone; a thread inside may enter again."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside: dict[int, int] = {}
        self._alone: int | None = None
        self._waiting = 0

    @contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        """Wait until this thread may enter; leave at the end of the context."""
        me = threading.get_ident()
        with self._condition:
            if me not in self._inside:
                self._wait(me, alone=alone)
            self._inside[me] = self._inside.get(me, 0) + 1
        try:
            yield
        finally:
            with self._condition:
                self._inside[me] -= 1
                if not self._inside[me]:
                    del self._inside[me]
                    self._alone = None if self._alone == me else self._alone
                    self._condition.notify_all()

    def _wait(self, me: int, *, alone: bool) -> None:
        if not alone:
            self._condition.wait_for(lambda: self._alone is None and not self._waiting)
            return
        self._waiting += 1  # other threads enter only after this one
        try:
            self._condition.wait_for(lambda: not self._inside)
            self._alone = me
        finally:
            self._waiting -= 1
            self._condition.notify_all()


_locks, _gate = _Locks(), _Gate()


class _Mine(threading.local):
    """The objects that this thread holds: id -> number of entries."""

    def __init__(self) -> None:
        self.held: Counter[int] = Counter()


_mine = _Mine()


@contextmanager
def noted(thing: object) -> Iterator[None]:
    """Record that this thread holds all locks of ``thing``."""
    key = id(thing)
    _mine.held[key] += 1
    try:
        yield
    finally:
        _mine.held[key] -= 1
        if not _mine.held[key]:
            del _mine.held[key]


def is_mine(thing: object) -> bool:
    """Return whether this thread holds all locks of ``thing`` (see `noted`)."""
    return id(thing) in _mine.held


def _forget() -> None:
    """Replace all locks after a fork: other threads do not release them there."""
    global _locks, _gate, _mine
    _locks, _gate, _mine = _Locks(), _Gate(), _Mine()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def entered(*, alone: bool) -> Iterator[None]:
    """Enter the gate, together with other threads or ``alone`` in this process."""
    with _gate.entered(alone=alone):
        yield


@contextmanager
def held(things: Iterable[object]) -> Iterator[None]:
    """Hold the locks of these calculators or modules, taken in the fixed order."""
    locks = {lock.number: lock for thing in things for lock in _locks.of(thing)}
    with ExitStack() as stack:
        for number in sorted(locks):
            stack.enter_context(locks[number].lock)
        yield


def parts_of(calculator: BaseCalculator) -> list[BaseCalculator]:
    """Return the calculators inside a sum, or the calculator itself."""
    if isinstance(calculator, LinearCombinationCalculator):
        return [part for inner in calculator.mixer.calcs for part in parts_of(inner)]
    return [calculator]


def models_in(thing: object, depth: int = 2) -> list[object]:
    """Return the torch modules in an object, and the inner objects that hold them.

    The search covers attributes, also in lists and dictionaries, ``depth`` levels deep:
    ``AIMNet2ASE`` holds an ``AIMNet2Calculator``, which holds the model, and both may
    be shared.
    """
    found: list[object] = []
    for value in _attributes(thing):
        if isinstance(value, torch.nn.Module):
            found.append(value)
        elif depth > 1 and _may_hold(value) and (inner := models_in(value, depth - 1)):
            found += [value, *inner]
    return found


def _attributes(thing: object) -> Iterator[object]:
    for value in list(getattr(thing, "__dict__", {}).values()):
        if isinstance(value, list | tuple):
            yield from value
        elif isinstance(value, dict):
            yield from list(value.values())
        else:
            yield value


def _may_hold(value: object) -> bool:
    """Return whether to search ``value`` for models.

    Classes, Python modules, Atoms and objects without weak references are skipped.
    """
    if isinstance(value, type | ModuleType | Atoms):
        return False
    return hasattr(value, "__dict__") and type(value).__weakrefoffset__ > 0
