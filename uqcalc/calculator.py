"""`ReliableCalculator`: an ASE calculator whose every answer carries a verdict."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from ase import Atoms
from ase.calculators.calculator import BaseCalculator, equal
from ase.outputs import Properties, all_outputs

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.registry import tap
from uqcalc.choosing import AUTO, choose_policy, choose_signals, probes_of
from uqcalc.policy import Policy
from uqcalc.probe.checkpoint import Probe
from uqcalc.records import Assessment, Level, Reading, Verdict
from uqcalc.signals.base import Signal, TensorReading, to_host
from uqcalc.signals.probe import ProbeSignal


_NO_NUMBERS = "energy or forces hold an infinity or what is not a number"


class ReliableCalculator(BaseCalculator):
    """Wrap an ASE calculator so that it says when to stop believing it.

    Parameters
    ----------
    calculator : ase calculator or Backbone
        Its own results stay untouched, in exactly one pass per geometry.
    probe : path, Probe, None or "auto"
        Adds ``probe_reliability`` and ``probe_importance`` to ``results``. By default
        the probe that ships with the package for this very model; it says which. Where
        there is none and no signals are given, those that need no labels are read,
        every geometry is at least SUSPECT, and it says so.
    signals : sequence of Signal
        Further readings of the same pass.
    policy : Policy, optional
        Limits on the signals; with a probe, the cutoffs stored in it by default.
    importance : {"always", "flagged"}
        Per atom at every geometry, or only where the verdict is not RELIABLE.

    Raises
    ------
    ValueError
        If neither probe nor signals are given, if a signal needs what the backbone
        does not provide, or if the policy judges a signal that does not run.
    BackboneError
        If the calculator cannot be tapped.
    ProbeError
        If the probe belongs to another backbone.
    """

    def __init__(
        self,
        calculator: BaseCalculator | Backbone,
        probe: str | os.PathLike[str] | Probe | None = AUTO,
        signals: Sequence[Signal] = (),
        policy: Policy | None = None,
        *,
        importance: Literal["always", "flagged"] = "always",
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if importance not in {"always", "flagged"}:
            msg = f"importance must be 'always' or 'flagged', got {importance!r}"
            raise ValueError(msg)
        self.backbone = tap(calculator)
        self.signals = choose_signals(self.backbone, probe, signals, importance)
        auto = probe == AUTO and not signals
        self.policy = choose_policy(self.signals, policy, auto=auto)
        base = self.backbone.calculator
        self.implemented_properties = list(dict.fromkeys(base.implemented_properties))
        self.assessment: Assessment | None = None
        self._evaluated = 0
        self._extra_state: dict[str, Any] = {}

    def calculate(
        self,
        atoms: Atoms,
        properties: Sequence[str],
        system_changes: Sequence[str],
    ) -> None:
        """Run the backbone once, read every signal once, judge once."""
        del system_changes  # relative to this wrapper; the base asks its own
        self.results, self.assessment = {}, None
        self._extra_state = _copied(self.backbone.extra_state(atoms))
        due = self._due()
        wanted = {*self._wanted(atoms, properties), *self.wanted(due)}
        prediction = self.backbone(atoms, sorted(wanted))
        self._evaluated += 1
        self.assessment = self.judge(prediction, due)
        self.results = prediction.results | self.assessment.results()

    def judge(
        self, prediction: Prediction, signals: Sequence[Signal] | None = None
    ) -> Assessment:
        """Read every signal (or these) of one prediction once, and judge once."""
        chosen = self.signals if signals is None else signals
        readings = to_host([r for s in chosen if (r := s(prediction)) is not None])
        finite = prediction.finite
        if not finite:
            readings = tuple(_voided(reading) for reading in readings)
        verdict = self.policy(readings)
        if not finite:  # also where no signal is due at this step
            reasons = verdict.reasons or (_NO_NUMBERS,)
            verdict = replace(verdict, level=Level.UNRELIABLE, reasons=reasons)
        readings = self._explained(prediction, readings, verdict)
        return Assessment(readings, verdict)

    def wanted(self, signals: Sequence[Signal] | None = None) -> list[str]:
        """Return what the signals (or these) need that a pass gives on demand only."""
        chosen = self.signals if signals is None else signals
        needed = {name for s in chosen for name in s.requires}
        return sorted({"energy", "forces"} | (needed & self.backbone.on_demand))

    def refusal(self, reason: str) -> Assessment:
        """Return the assessment of a geometry that could not be evaluated.

        Every risk is NaN, so that it is UNRELIABLE, with ``reason`` as its note.
        """
        readings = tuple(
            Reading(
                signal.name,
                math.nan,
                results={"probe_reliability": math.nan}
                if isinstance(signal, ProbeSignal)
                else {},
                note=reason,
            )
            for signal in self.signals
        )
        return Assessment(readings, self.policy(readings))

    def assess(self, atoms: Atoms) -> Assessment:
        """Return the assessment of exactly this geometry, evaluating if needed."""
        self.get_property("energy", atoms)  # type: ignore[no-untyped-call]
        if self.assessment is None:
            msg = "results are cached without an assessment; call reset() first"
            raise RuntimeError(msg)
        return self.assessment

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return what changed: the geometry, or charge and spin as the model reads it.

        The wrapper's own copy is compared, never the base calculator's, which other
        wrappers may share.
        """
        changes: list[str]
        changes = super().check_state(atoms, tol)  # type: ignore[no-untyped-call]
        if not changes and not _same(
            self._extra_state, self.backbone.extra_state(atoms)
        ):
            changes.append("info")
        return changes

    def reset(self) -> None:
        """Forget the last geometry and all that was said of it."""
        self.atoms, self.results, self.assessment = None, {}, None

    def export_properties(self) -> Properties:
        """Return the results that ASE knows; the readings stay in ``results``."""
        known = {k: v for k, v in self.results.items() if k in all_outputs}
        return Properties(known)

    def todict(self) -> dict[str, Any]:
        """Return a JSON-able description, as trajectory writers ask for one."""
        return {
            "backbone": self.backbone.fingerprint,
            "signals": [signal.name for signal in self.signals],
            "policy": self.policy.to_dict(),
        }

    def describe(self) -> dict[str, Any]:
        """Return `todict` and the probe's card, for logs."""
        cards = [probe.card.to_dict() for probe in probes_of(self.signals)]
        return self.todict() | {"probe": cards[0] if cards else None}

    def _due(self) -> list[Signal]:
        """Return the signals to read now: some run at every k-th geometry only."""
        count = self._evaluated
        return [s for s in self.signals if count % getattr(s, "interval", 1) == 0]

    def _wanted(self, atoms: Atoms, properties: Sequence[str]) -> list[str]:
        """Ask for all a step needs at once: lazy calculators then run once."""
        wanted = {"energy", "forces", *properties}
        if "stress" in self.implemented_properties and atoms.pbc.all():
            wanted.add("stress")
        return sorted(wanted & set(self.implemented_properties))

    def _explained(
        self,
        prediction: Prediction,
        readings: tuple[Reading, ...],
        verdict: Verdict,
    ) -> tuple[Reading, ...]:
        """Add the importance that was left out, where the verdict asks for it."""
        if verdict.level is Level.RELIABLE:
            return readings
        missing: dict[str, TensorReading] = {
            signal.name: signal.explain(prediction)
            for signal in self.signals
            if isinstance(signal, ProbeSignal) and not signal.importance
        }
        explained = {r.signal: r for r in to_host(list(missing.values()))}
        return tuple(
            replace(
                reading,  # the numbers of the verdict stay, to the last bit
                results={**explained[reading.signal].results, **reading.results},
                per_atom_key=explained[reading.signal].per_atom_key,
            )
            if reading.signal in explained
            else reading
            for reading in readings
        )


def _voided(reading: Reading) -> Reading:
    """Take the numbers out of a reading of a prediction that is none."""
    return replace(
        reading,
        risk=math.nan,
        results={key: value * math.nan for key, value in reading.results.items()},
        per_atom_key=None,
        note=_NO_NUMBERS,
    )


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {k: v.copy() if hasattr(v, "copy") else v for k, v in state.items()}


def _same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return ours.keys() == theirs.keys() and all(
        value is theirs[key] or equal(value, theirs[key]) for key, value in ours.items()
    )
