"""Adversarial structures: raise the disagreement of a model's two forces."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from uqcalc.annotating.copies import annotated_copy, unlabelled_copy
from uqcalc.attacking.ascent import (
    AttackSettings,
    Step,
    too_close,
    uphill,
    within_bounds,
)
from uqcalc.attacking.path import (
    ERROR_KEY,
    START_KEY,
    STEP_KEY,
    AttackPath,
    GrowingPath,
)
from uqcalc.backbones.batching import predict_each
from uqcalc.backbones.differentiable import CanDifferentiate
from uqcalc.backbones.prediction import Prediction, fixed_atoms
from uqcalc.calculator import ReliableCalculator
from uqcalc.errors import BackboneError, UqcalcError


SIGNAL = "force_delta"
# Errors that end one path, but not the others. Full memory is among them, so that
# computed frames are not lost. The ``reason`` of the path names the error.
_MODEL_FAULTS = (UqcalcError, RuntimeError, ValueError, ArithmeticError, LookupError)
# References that run as processes raise these, too.
_REFERENCE_FAULTS = (*_MODEL_FAULTS, OSError, subprocess.SubprocessError)


def attack(
    atoms: Atoms,
    calculator: ReliableCalculator,
    settings: AttackSettings | None = None,
    *,
    reference: BaseCalculator | None = None,
    observer: Callable[[Atoms], object] | None = None,
) -> list[AttackPath]:
    """Move copies of ``atoms`` to structures on which the model's two forces disagree.

    Each step is ``alpha dU/dr - beta dE/dr`` ("When Forces Disagree: A Data-Free Fast
    Uncertainty Estimate for Direct-Force Pre-trained Neural Network Potentials", 2025,
    equation 3; after Schwalbe-Koda et al. 2021, doi:10.1038/s41467-021-25342-8), with
    the true gradient of U, scaled down and halved to the bounds of ``settings``. The
    frames of a path have the results of a normal pass; the gradients need further
    passes.

    A path ends early if a bound allows no step, if U no longer changes, or if model or
    reference fail. The frames before are returned, with the ``reason``.

    Parameters
    ----------
    atoms : Atoms
        They do not change. Atoms under a ``FixAtoms`` constraint are not moved.
    calculator : ReliableCalculator
        With a ``ForceDelta`` signal, on a backbone that can be differentiated (Orb).
        Its last results do not change.
    settings : AttackSettings, optional
    reference : ase calculator, optional
        Evaluated at every frame, to record the true error of the forces.
    observer : callable, optional
        Called with every frame as it is made.

    Returns
    -------
    list of AttackPath
        One for each start.

    Raises
    ------
    TypeError, ValueError
        If calculator, structure or reference are of another type or cannot be used.
    BackboneError
        If the backbone cannot be differentiated, or cannot evaluate ``atoms``.

    Examples
    --------
    ::

        calc = ReliableCalculator(orb, signals=[ForceDelta()], policy=policy)
        paths = attack(atoms, calc, AttackSettings(starts=3, steps=100))
        write("to_label.xyz", [path.frames[-1] for path in paths])
    """
    chosen = AttackSettings() if settings is None else settings
    signal = _checked_signal(calculator)
    _check_structure(atoms, calculator, chosen)
    if reference is not None and "forces" not in reference.implemented_properties:
        msg = (
            "reference must give forces, got a calculator with only "
            f"{list(reference.implemented_properties)}; choose another calculator"
        )
        raise ValueError(msg)
    attacker = _Attacker(calculator, signal, chosen, reference, observer)
    given = unlabelled_copy(atoms)
    given.info.pop(ERROR_KEY, None)  # of an earlier attack
    paths: list[AttackPath] = []
    for start in range(chosen.starts):
        paths.append(attacker.path(start, given))
        if not paths[0].frames:
            msg = (
                "the potential must be able to evaluate the structure, got: "
                f"{paths[0].reason}"
            )
            raise BackboneError(msg)
    return paths


def _checked_signal(calculator: object) -> Any:
    """Return the signal that can be differentiated, or say what is missing."""
    if not isinstance(calculator, ReliableCalculator):
        msg = (
            f"calculator must be a ReliableCalculator, got {type(calculator).__name__};"
            " wrap it: ReliableCalculator(calculator, signals=[ForceDelta()], policy="
            'Policy([Threshold("force_delta", suspect=..., unreliable=...)]))'
        )
        raise TypeError(msg)
    for signal in calculator.signals:
        if signal.name == SIGNAL and hasattr(signal, "uncertainty"):
            break
    else:
        msg = (
            "calculator must have the signal ForceDelta for an attack, got signals "
            f"{[s.name for s in calculator.signals]}; pass signals=[ForceDelta()]"
        )
        raise ValueError(msg)
    if not isinstance(calculator.backbone, CanDifferentiate):
        msg = (
            "backbone must be twice differentiable for an attack, got "
            f"{calculator.backbone.name}, which is not; wrap another model, such as "
            "Orb"
        )
        raise BackboneError(msg)
    return signal


def _check_structure(
    atoms: object, calculator: ReliableCalculator, settings: AttackSettings
) -> None:
    if not isinstance(atoms, Atoms):
        msg = f"atoms must be one ase Atoms, got {type(atoms).__name__}; pass one frame"
        raise TypeError(msg)
    calculator.backbone.check_structure(atoms)
    kinds = {type(constraint).__name__ for constraint in atoms.constraints}
    if others := sorted(kinds - {"FixAtoms"}):
        msg = (
            f"all constraints must be FixAtoms for an attack, got {others}; remove "
            "these with atoms.set_constraint()"
        )
        raise ValueError(msg)
    fixed = fixed_atoms(atoms)
    if fixed is not None and fixed.all():
        msg = "at least one atom must be free, got FixAtoms on all; release some"
        raise ValueError(msg)
    if settings.cell == "free" and not atoms.pbc.all():
        msg = (
            "pbc must be True in all three directions for cell='free', got "
            f"{atoms.pbc.tolist()}; use cell='fixed'"
        )
        raise ValueError(msg)
    if settings.cell == "free" and fixed is not None:
        msg = (
            "atoms must have no FixAtoms for cell='free', which moves every atom, "
            "got FixAtoms; use cell='fixed'"
        )
        raise ValueError(msg)
    if pairs := too_close(atoms, settings.closest):
        i, j, distance = pairs[0]
        msg = (
            f"atoms must be no closer than {settings.closest:g} times the sum of "
            f"their covalent radii, got atoms {i} and {j} at {distance:.3g} Å; lower "
            "`closest`, or correct the structure"
        )
        raise ValueError(msg)


@dataclass(frozen=True, slots=True, eq=False)
class _Attacker:
    """What all paths of an attack have in common."""

    calculator: ReliableCalculator
    signal: Any
    settings: AttackSettings
    reference: BaseCalculator | None
    observer: Callable[[Atoms], object] | None

    def path(self, start: int, given: Atoms) -> AttackPath:
        """Return one path, complete."""
        path = GrowingPath(start)
        at: Atoms | str = self._rattled(start, given)
        for step in range(self.settings.steps + 1):
            if step:
                at = self._next(cast("Atoms", at))
            ended = at if isinstance(at, str) else self._record(path, at)
            if ended:
                return path.closed(ended, scored=self.reference is not None)
        reason = f"all {self.settings.steps} steps done"
        return path.closed(reason, scored=self.reference is not None)

    def _rattled(self, start: int, given: Atoms) -> Atoms | str:
        if start == 0:
            return given
        rng = np.random.default_rng([self.settings.seed, start])
        shifts = rng.normal(scale=self.settings.rattle, size=given.positions.shape)
        return self._moved(given, Step(shifts, np.zeros((3, 3))))

    def _next(self, atoms: Atoms) -> Atoms | str:
        """Return the next geometry, or why there is none."""
        settings = self.settings
        backbone = cast("CanDifferentiate", self.calculator.backbone)
        try:
            step = uphill(atoms, backbone, self.signal, settings)
        except _MODEL_FAULTS as error:
            return f"no gradient: {_said(error)}"
        if not step.finite:
            return "a gradient is NaN or infinite"
        return self._moved(atoms, step, bounded=True)

    def _moved(self, atoms: Atoms, step: Step, *, bounded: bool = False) -> Atoms | str:
        settings = self.settings
        fixed = fixed_atoms(atoms)
        if fixed is not None:
            step = Step(np.where(fixed[:, None], 0.0, step.displacements), step.strain)
        if step.nothing:
            return "U no longer changes" if settings.beta == 0 else "no step is left"
        if bounded:
            step = step.bounded(settings.max_step, settings.max_strain)
        moved = within_bounds(atoms, step, settings.closest)
        if moved is None:
            return (
                f"atoms would come closer than {settings.closest:g} times the sum of "
                "their covalent radii"
            )
        return moved

    def _record(self, path: GrowingPath, atoms: Atoms) -> str:
        """Evaluate and keep one geometry; return why the path ends with it, or ""."""
        prediction = self._prediction(atoms)
        if isinstance(prediction, str):
            return prediction
        ceiling = self.settings.max_energy_rise
        energy = float(prediction.results["energy"])
        rise = (energy - path.energy[0]) / len(atoms) if path.energy else 0.0
        if ceiling is not None and rise > ceiling:
            return f"energy rose by more than {ceiling:g} eV/atom"
        assessment = self.calculator.judge(prediction)
        frame = annotated_copy(atoms, assessment, prediction.results)
        frame.info[START_KEY] = path.start
        frame.info[STEP_KEY] = len(path.frames)
        reading = assessment.reading(SIGNAL)
        uncertainty = float(reading.results.get(SIGNAL, reading.risk))
        error, failure = self._error(prediction, frame)
        path.add(frame, uncertainty, energy, error)
        if self.observer is not None:
            self.observer(frame)
        if math.isnan(reading.risk):
            return f"U is NaN: {reading.note or 'the model did not give U'}"
        return failure

    def _prediction(self, atoms: Atoms) -> Prediction | str:
        calculator = self.calculator
        wanted = [*calculator.wanted(), *(["stress"] if atoms.pbc.all() else [])]
        try:
            [outcome] = predict_each(calculator.backbone, [atoms], wanted)
        except _MODEL_FAULTS as error:
            return _said(error)
        return outcome

    def _error(self, prediction: Prediction, frame: Atoms) -> tuple[float, str]:
        """Put the reference's forces into ``frame``; return their RMS error."""
        if self.reference is None:
            return math.nan, ""
        bare: Any = frame.copy()
        try:
            given = self.reference.get_property("forces", bare)
            forces = np.array(given, dtype=float).reshape(len(frame), 3)
        except _REFERENCE_FAULTS as error:
            return math.nan, f"the reference failed: {_said(error)}"
        apart = np.asarray(prediction.results["forces"]) - forces
        rms = float(np.sqrt(np.mean(apart**2)))
        frame.arrays["REF_forces"] = forces
        frame.info[ERROR_KEY] = rms
        return rms, ""


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, UqcalcError) else f"{type(error).__name__}: {text}"
