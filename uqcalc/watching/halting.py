"""A halt ends a run in the current step and blocks later runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ase.mep.neb import NEBOptimizer
from ase.optimize.basin import BasinHopping
from ase.optimize.sciopt import SciPyGradientlessOptimizer, SciPyOptimizer


# The loops of these classes do not check ``max_steps``; only an exception ends them.
_NO_SOFT_STOP = (
    SciPyOptimizer,
    SciPyGradientlessOptimizer,
    BasinHopping,
    NEBOptimizer,
)
_STARTS = ("run", "irun")


class Halt:
    """Ends a run, and blocks later ones until `lift`.

    ASE calls observers only after a step. With an observer alone, each later ``run``
    would make one more step. Therefore ``run`` and ``irun`` of this object are replaced
    during the halt by functions that make no step.

    Parameters
    ----------
    dynamics : ase MD or optimiser
    """

    def __init__(self, dynamics: Any) -> None:
        self._dynamics = dynamics
        self._own: dict[str, Any] | None = None

    @property
    def needs_exception(self) -> bool:
        """Whether only an exception can end a running loop of this class."""
        return isinstance(self._dynamics, _NO_SOFT_STOP)

    def stop(self) -> None:
        """End the running loop after this step."""
        self._dynamics.max_steps = -1

    def bar(self, refuse: Callable[[], object]) -> None:
        """Make each later ``run`` call ``refuse`` and return False, without a step."""
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
        """Restore ``run`` and ``irun``."""
        if self._own is None:
            return
        for name in _STARTS:
            vars(self._dynamics).pop(name, None)
        vars(self._dynamics).update(self._own)
        self._own = None
