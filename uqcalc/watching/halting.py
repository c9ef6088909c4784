"""A halt: the run ends in its very step, and no later run of it begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ase.mep.neb import NEBOptimizer
from ase.optimize.basin import BasinHopping
from ase.optimize.sciopt import SciPyGradientlessOptimizer, SciPyOptimizer


# Their loops do not read ``max_steps`` again, so they are left by an exception.
_NO_SOFT_STOP = (
    SciPyOptimizer,
    SciPyGradientlessOptimizer,
    BasinHopping,
    NEBOptimizer,
)
_STARTS = ("run", "irun")


class Halt:
    """Ends a run, and keeps later ones from beginning until `lift`.

    ASE calls observers after a step only, so that an observer would let each later
    ``run`` make one more step. While the halt lasts, ``run`` and ``irun`` of this one
    object are therefore replaced by functions that make none.

    Parameters
    ----------
    dynamics : ase MD or optimiser
    """

    def __init__(self, dynamics: Any) -> None:
        self._dynamics = dynamics
        self._own: dict[str, Any] | None = None

    @property
    def needs_exception(self) -> bool:
        """Whether a loop that is under way ends by an exception only."""
        return isinstance(self._dynamics, _NO_SOFT_STOP)

    def stop(self) -> None:
        """End the loop that is under way in this very step."""
        self._dynamics.max_steps = -1

    def bar(self, refuse: Callable[[], object]) -> None:
        """Call ``refuse`` in place of every later ``run``, which returns False."""
        if self._own is not None:
            return
        attributes = vars(self._dynamics)
        self._own = {name: attributes[name] for name in _STARTS if name in attributes}

        def run(*_: object, **__: object) -> bool:
            refuse()
            return False

        def irun(*_: object, **__: object) -> Iterator[bool]:
            refuse()
            yield False

        self._dynamics.run, self._dynamics.irun = run, irun

    def lift(self) -> None:
        """Let the next ``run`` begin."""
        if self._own is None:
            return
        for name in _STARTS:
            vars(self._dynamics).pop(name, None)
        vars(self._dynamics).update(self._own)
        self._own = None
