"""Fast backbones and signals with given results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from uqcalc.backbones.base import Backbone, Capture, Prediction
from uqcalc.calculator import ReliableCalculator
from uqcalc.policy import Policy, Threshold
from uqcalc.signals.base import TensorReading


GOOD, SUSPECT, BAD, NAN = 0.0, 0.5, 1.0, float("nan")
POLICY = Policy([Threshold("scripted", suspect=0.3, unreliable=0.7)])


class ToyBackbone(Backbone):
    """Any calculator, with one feature of ones, from the same pass."""

    name = "toy"

    def __init__(self, calculator, fingerprint="toy:1"):
        super().__init__(calculator, calculator, feature_dim=1, fingerprint=fingerprint)

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        captured = Capture([], [])
        plain = self.calculator.calculate

        def calculate(atoms, *args):
            plain(atoms, *args)
            captured.features.append(torch.ones(len(atoms), 1))

        self.calculator.calculate = calculate
        try:
            yield captured
        finally:
            del self.calculator.calculate


class Counted:
    """Counts all forward passes of a calculator's model."""

    def __init__(self, calculator) -> None:
        [model] = calculator.models
        self.passes = 0
        self.handle = model.register_forward_pre_hook(self._count)

    def _count(self, *_):
        self.passes += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


class Scripted:
    """Risks in the order of evaluation, then ``after``; None skips the signal."""

    name = "scripted"
    requires: frozenset[str] = frozenset()

    def __init__(self, risks: Sequence[float | None] = (), after=GOOD) -> None:
        self._risks = iter(risks)
        self._after = after

    def __call__(self, prediction: Prediction) -> TensorReading | None:
        risk = next(self._risks, self._after)
        if risk is None:
            return None
        weights = np.arange(len(prediction.numbers), dtype=float)
        return TensorReading(
            self.name, risk, "eV", {"weights": weights}, per_atom_key="weights"
        )


class OfGeometry:
    """Risk as a function of the positions alone."""

    name = "scripted"
    requires: frozenset[str] = frozenset()

    def __init__(self, risk: Callable[[np.ndarray], float]) -> None:
        self._risk = risk

    def __call__(self, prediction: Prediction) -> TensorReading:
        return TensorReading(self.name, self._risk(prediction.positions))


class FaultyEMT(EMT):
    """EMT that raises an error or gives NaN at evaluation ``at``."""

    def __init__(self, at: int, fault: str) -> None:
        super().__init__()
        self._left, self._fault = at, fault

    def calculate(self, *args, **kwargs):
        super().calculate(*args, **kwargs)
        if self._left == 0 and self._fault == "raise":
            raise ZeroDivisionError("the potential fell over")
        if self._left == 0:
            self.results["energy"] = np.nan
            self.results["forces"] = np.full_like(self.results["forces"], np.nan)
        self._left -= 1


def copper(seed: int = 0, *, amount: float = 0.1) -> Atoms:
    """Four atoms of copper, rattled by ``amount`` Å and moving."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(amount, seed=seed)
    rng = np.random.default_rng(seed)
    atoms.set_velocities(rng.normal(0, 0.02, (4, 3)))
    return atoms


def watched(
    risks: Sequence[float | None] = (),
    *,
    after=GOOD,
    base=None,
    signal=None,
    policy: Policy = POLICY,
    fingerprint="toy:1",
    amount: float = 0.1,
) -> Atoms:
    """Copper under a calculator with scripted risks."""
    atoms = copper(amount=amount)
    atoms.calc = ReliableCalculator(
        ToyBackbone(base or EMT(), fingerprint),
        signals=[signal or Scripted(risks, after)],
        policy=policy,
    )
    return atoms
