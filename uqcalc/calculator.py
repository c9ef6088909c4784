"""`ReliableCalculator`: an ASE calculator that judges each of its results."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from ase import Atoms
from ase.calculators.calculator import (
    BaseCalculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.outputs import Properties, all_outputs

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.locks import held
from uqcalc.backbones.prediction import fixed_atoms
from uqcalc.backbones.registry import tap
from uqcalc.chargespin import stated_charge_spin
from uqcalc.defaults import (
    AUTO,
    Probes,
    choose_policy,
    choose_signals,
    configuration,
    description,
    probes_of,
)
from uqcalc.htmltable import html_table
from uqcalc.judging import judged
from uqcalc.policy import Policy
from uqcalc.probe.validity import validity
from uqcalc.records import Assessment, Level, Reading, Verdict, checked_interval
from uqcalc.resultcache import Answer, Recent, changed, frozen, same
from uqcalc.signals.base import (
    Signal,
    TensorReading,
    extended,
    to_host,
    to_host_asking,
)
from uqcalc.signals.probe import ProbeSignal
from uqcalc.signals.region import Chosen
from uqcalc.targets import TARGETS
from uqcalc.uses import Use, checked_use, judged_for


class ReliableCalculator(BaseCalculator):
    """Wrap an ASE calculator and judge the reliability of its results.

    Parameters
    ----------
    calculator : ase calculator or Backbone
        The potential. Its results stay unchanged; each geometry costs one pass.
    probe : path, Probe, sequence of these, None or "auto"
        Adds ``probe_reliability`` and ``probe_importance`` to ``results``. Several
        probes are of different targets: that of the forces, or else the first, gives
        these results, and the others give the same with their target at the end, such
        as ``probe_reliability_stress``. "auto" takes
        the probe that ships with the package for this model, and logs its name. If
        none ships and no signals are given, the signals that need no labels are used:
        every geometry is then at least SUSPECT, and a warning is logged.
    signals : sequence of Signal
        Additional signals, computed from the same pass.
    policy : Policy, optional
        Thresholds of the signals; by default the cutoffs stored in the probe. Of
        several probes, that of the forces (or else the first) counts always, that of
        the stress when the cell moves in a run under `Monitor`, `relax` or `annotate`;
        the others are read only.
    importance : {"always", "flagged"}
        Compute the importance of each atom at every geometry, or only where the
        verdict is not RELIABLE.
    sanity : bool
        Whether to add `uqcalc.Sanity`, which detects fused atoms, atoms without
        neighbours and the like. Its findings count in every policy.
    flags : bool, optional
        Whether to add `uqcalc.Flags`, which detects bonds that break, ions and
        radicals. Its findings count in every policy. By default as ``sanity``.
    interval : int
        Judge only every ``interval``-th geometry, starting with the first. For the
        others no signal is evaluated: ``results`` are those of the calculator alone,
        without a level, and `assessment` is None.
    enabled : bool
        If False, signals are not evaluated, ``results`` do not hold a level, and a
        `Monitor` does not check the run. This attribute may be changed at any time.
    atoms : sequence of int or of bool, optional
        Indices or mask of the atoms that the probe's verdict is about: an adsorbate, a
        defect, a QM zone. By default all atoms (`uqcalc.ProbeSignal`).

    Raises
    ------
    ValueError
        If neither probe nor signals are given, if a signal needs what the backbone
        does not provide, if the policy judges a signal that does not run, if
        ``interval`` is not an integer of at least 1, or if ``atoms`` are given without
        a probe, with a policy of a guarantee, or for a structure of another size.
    BackboneError
        If the calculator cannot be tapped.
    ProbeError
        If the probe belongs to another backbone, or if ``atoms`` are given and it is
        not for forces.
    """

    def __init__(  # noqa: PLR0913  (what a user writes in one line of a script)
        self,
        calculator: BaseCalculator | Backbone,
        probe: Probes | None = AUTO,
        signals: Sequence[Signal] = (),
        policy: Policy | None = None,
        *,
        importance: Literal["always", "flagged"] = "always",
        sanity: bool = True,
        flags: bool | None = None,
        interval: int = 1,
        enabled: bool = True,
        atoms: Chosen | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.interval = checked_interval(interval, "interval")
        self.enabled = enabled
        if importance not in {"always", "flagged"}:
            msg = f"importance must be 'always' or 'flagged', got {importance!r}"
            raise ValueError(msg)
        self.backbone = extended(tap(calculator), signals)
        self.signals = choose_signals(
            self.backbone,
            probe,
            signals,
            importance,
            sanity=sanity,
            flags=flags,
            atoms=atoms,
        )
        auto = probe == AUTO and not signals
        self.policy = choose_policy(self.signals, policy, auto=auto)
        base = self.backbone.calculator
        self.implemented_properties = list(dict.fromkeys(base.implemented_properties))
        self.assessment: Assessment | None = None
        self._evaluated = 0
        self._state: Hashable = None
        self._recent = Recent()
        # the results and the features of the geometry that was judged last
        self._features: tuple[Mapping[str, Any], torch.Tensor] | None = None

    def __repr__(self) -> str:
        said = ", ".join(f"{name}: {text}" for name, text in self._rows())
        return f"<ReliableCalculator {said}>"

    def _repr_html_(self) -> str:
        return html_table("ReliableCalculator", self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        judged = f"every {self.interval} geometries" if self.interval > 1 else "always"
        last = "none" if self.assessment is None else self.assessment.level.name
        return [
            ("backbone", self.backbone.name),
            ("signals", " ".join(signal.name for signal in self.signals)),
            ("policy for", " ".join(self.policy.signals)),
            ("judged", judged if self.enabled else "not enabled"),
            *([("probe", self.validity)] if self.validity else []),
            ("last level", last),
        ]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate the backbone once and, if judging is due, every signal once.

        Raises
        ------
        ValueError
            If ``atoms`` is None and no geometry was given before.
        """
        del system_changes  # may differ from the changes since the model's last pass
        given = self.atoms if atoms is None else atoms
        if given is None:
            msg = "atoms must be given for the first calculation, got None; pass them"
            raise ValueError(msg)
        judged = self.enabled and self._evaluated % self.interval == 0
        self._evaluate(given, properties or (), judged=judged)
        self._evaluated += 1

    def get_property(
        self,
        name: str,
        atoms: Atoms | None = None,
        allow_calculation: bool = True,  # noqa: FBT001, FBT002  (signature of ASE)
    ) -> Any:
        """Return one result for this geometry; evaluate it if needed.

        The answers for the last geometries are cached: a return to one of them, as in
        a dimer search, costs no pass. Only one thread at a time runs this method.
        """
        with held([self]):
            if atoms is None or not self.use_cache:
                return super().get_property(name, atoms, allow_calculation)  # type: ignore[no-untyped-call]
            if self.check_state(atoms):
                self._recall(atoms)
            known = name in self.results or name not in self.implemented_properties
            if allow_calculation and not known:
                self.calculate(atoms, [name])
                if name not in self.results:
                    msg = f"{name} is not among the results of this calculation"
                    raise PropertyNotImplementedError(msg)
            # atoms=None: otherwise ASE compares the atoms a second time
            return super().get_property(name, None, allow_calculation=False)  # type: ignore[no-untyped-call]

    def judge(
        self, prediction: Prediction, signals: Sequence[Signal] | None = None
    ) -> Assessment:
        """Evaluate every signal once on one prediction, and judge once.

        ``signals`` replace the calculator's own. If the prediction holds NaN or
        infinity, all risks are NaN and the level is UNRELIABLE.
        """
        chosen = self.signals if signals is None else signals
        given = [r for s in chosen if (r := s(prediction)) is not None]
        return self._judged(prediction, given)

    def judge_each(self, predictions: Sequence[Prediction]) -> list[Assessment]:
        """Judge the predictions of one batch; each probe is read once for all.

        The numbers agree with those of `judge` to single precision.
        """
        if len(predictions) < 2:
            return [self.judge(prediction) for prediction in predictions]
        of_probes = {
            signal.name: signal.read_each(predictions)
            for signal in self.signals
            if isinstance(signal, ProbeSignal)
        }
        found = []
        for row, prediction in enumerate(predictions):
            readings = (
                of_probes[s.name][row] if s.name in of_probes else s(prediction)
                for s in self.signals
            )
            given = [reading for reading in readings if reading is not None]
            found.append(self._judged(prediction, given))
        return found

    def _judged(
        self, prediction: Prediction, given: Sequence[TensorReading]
    ) -> Assessment:
        """Bring the readings of one prediction to the host, and judge them."""
        readings, broken = to_host_asking(given, prediction)
        readings, verdict = judged(readings, broken, self.policy)
        readings = self._explained(prediction, readings, verdict)
        return Assessment(readings, verdict)

    def wanted(self, signals: Sequence[Signal] | None = None) -> list[str]:
        """Return the quantities to request for the signals (default: all signals).

        These are energy, forces, and what the signals need of ``on_demand`` and of the
        stress.
        """
        chosen = self.signals if signals is None else signals
        needed = {name for s in chosen for name in s.requires}
        extras = needed & {"stress", *self.backbone.on_demand}
        return sorted({"energy", "forces"} | extras)

    def refusal(self, reason: str) -> Assessment:
        """Return the assessment of a geometry that could not be evaluated.

        Every risk is NaN, so the level is UNRELIABLE; each note is ``reason``.
        """
        readings = tuple(
            Reading(
                signal.name,
                math.nan,
                results=signal.unknown() if isinstance(signal, ProbeSignal) else {},
                note=reason,
            )
            for signal in self.signals
        )
        return Assessment(readings, self.policy(readings))

    def assess(self, atoms: Atoms, use: Use | None = None) -> Assessment:
        """Return the assessment of this geometry; evaluate it if needed.

        A geometry that ``interval`` skipped is evaluated again and judged.

        Parameters
        ----------
        atoms : Atoms
        use : {"fixed_cell", "moving_cell", "energy"}, optional
            What the results are used for (`uqcalc.uses`). The verdict then covers the
            forces, forces and stress, or the energy; it is at least SUSPECT if no
            signal judges one of them. By default it is that on the quantity of the
            first probe, as in ``results``.

        Raises
        ------
        ValueError
            If the calculator is not enabled or ``use`` is unknown.
        """
        stated = checked_use(use)
        if not self.enabled:
            msg = (
                "calculator must be enabled to assess a geometry, got enabled=False; "
                "set calculator.enabled = True"
            )
            raise ValueError(msg)
        with held([self]):
            found = self.assessment_of(atoms)
            if found is None:
                found = self._evaluate(atoms, ("energy",), judged=True)
            if found is None:
                msg = "a geometry must be judged when it is asked for, got no verdict"
                raise RuntimeError(msg)
            return judged_for(found, stated, self.policy, self.signals)

    def assessment_of(self, atoms: Atoms) -> Assessment | None:
        """Return the assessment of this geometry; evaluate it if needed.

        None if ``interval`` skips the geometry or the calculator is not enabled.
        """
        with held([self]):
            self.get_property("energy", atoms)
            return self.assessment

    def recall(self, atoms: Atoms) -> Mapping[str, Any]:
        """Return the cached results of this geometry, or an empty mapping.

        Nothing is evaluated.
        """
        with held([self]):
            if self.check_state(atoms):
                self._recall(atoms)
            return self.results

    def features(self, atoms: Atoms) -> torch.Tensor:
        """Return the features of this geometry, (atoms, dim), on the model's device.

        The features of the geometry that was judged last are cached; any other geometry
        costs a pass, which does not change the results of the calculator.
        """
        with held([self]):
            results = self.recall(atoms)
            if self._features is not None and self._features[0] is results:
                return self._features[1]
            return self.backbone(atoms, ["energy", "forces"]).features

    def remember(self, geometries: int) -> None:
        """Cache at least so many ``geometries``, such as all images of a NEB band."""
        self._recent.size = max(self._recent.size, geometries)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return the names of the inputs that changed since the last geometry.

        The geometry is compared as in ASE. "info" stands for all other inputs: what
        else the model reads (such as a charge in ``info``), the fixed atoms, the
        signals and the policy. The comparison is with this wrapper's own copy, since
        other wrappers may share the base calculator.
        """
        if self.atoms is None or not self.use_cache:
            return [*all_changes]
        changes = changed(self.atoms, atoms, tol)
        if not changes and self._state != self._read(atoms):
            changes.append("info")
        return changes

    def reset(self) -> None:
        """Delete all cached geometries, results and assessments."""
        self._drop()
        self.atoms = None
        self._features = None
        self._recent.clear()

    def export_properties(self) -> Properties:
        """Return the results with names known to ASE, without the readings."""
        known = {k: v for k, v in self.results.items() if k in all_outputs}
        return Properties(known)

    def todict(self) -> dict[str, Any]:
        """Return a JSON-compatible description, for ASE trajectory writers."""
        return configuration(self.backbone, self.signals, self.policy)

    def describe(self) -> dict[str, Any]:
        """Return `todict` and the card of the first probe (or None), for logs.

        The cards of further probes are under "further_probes".
        """
        return description(self.backbone, self.signals, self.policy)

    @property
    def validity(self) -> str:
        """What the probes are validated on, and what not; empty without a probe.

        With several probes, each sentence starts with the quantity that it is about.
        """
        cards = [probe.card for probe in probes_of(self.signals)]
        if len(cards) == 1:
            return validity(cards[0])
        return "; ".join(f"{TARGETS[c.target].of}: {validity(c)}" for c in cards)

    def _evaluate(
        self, given: Atoms, properties: Sequence[str], *, judged: bool
    ) -> Assessment | None:
        """Evaluate a geometry once, judge it if ``judged``, and cache the answer."""
        with held([self]), self.backbone.alone():
            self._drop()
            self.atoms, self._state = given.copy(), self._read(given)
            wanted = {*self._wanted(given, properties)}
            if judged:
                due = self._due()
                prediction = self.backbone(given, sorted({*wanted, *self.wanted(due)}))
                assessment = self.assessment = self.judge(prediction, due)
                self.results = prediction.results | assessment.results()
                self._features = (self.results, prediction.features)
            else:
                asked = [*properties] or ["energy"]  # as for the calculator alone
                self.results = self.backbone.untapped(
                    given, sorted(wanted) if self.enabled else asked
                )
            answer = Answer(self.atoms, self._state, self.results, self.assessment)
            self._recent.keep(answer)
            return self.assessment

    def _drop(self) -> None:
        self.results, self.assessment = {}, None

    def _recall(self, atoms: Atoms) -> None:
        """Restore the cached answer for this geometry; clear the results if none."""
        answer = self._recent.find(atoms, self._read(atoms))
        if answer is None:
            self._drop()
            return
        self.atoms, self._state = answer.atoms, answer.state
        self.results, self.assessment = answer.results, answer.assessment

    def _read(self, atoms: Atoms) -> Hashable:
        """Return all inputs of an answer other than the geometry."""
        with self.backbone.at_rest():
            state = frozen(self.backbone.extra_state(atoms))
        if not self.enabled:
            return (state, "not enabled")
        judges = [same(judge) for judge in (self.policy, *self.signals)]
        return (
            state,
            frozen(stated_charge_spin(atoms)),
            frozen(fixed_atoms(atoms)),
            *judges,
        )

    def _due(self) -> list[Signal]:
        """Return the signals due now: some run only at every k-th geometry."""
        count = self._evaluated
        return [s for s in self.signals if count % getattr(s, "interval", 1) == 0]

    def _wanted(self, atoms: Atoms, properties: Sequence[str]) -> list[str]:
        """Return all properties of a step, so that lazy calculators run only once."""
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
        """Add the skipped importance of atoms if the level is not RELIABLE."""
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
                reading,  # keep the values behind the verdict bit by bit
                results={**explained[reading.signal].results, **reading.results},
                per_atom_key=explained[reading.signal].per_atom_key,
            )
            if reading.signal in explained
            else reading
            for reading in readings
        )


def default_calculator(
    device: str = "cpu", dtype: str = "float32"
) -> ReliableCalculator:
    """Return the bundled potential with its probe; it needs no download.

    It is for demonstrations, tests and learning: neutral molecules of H, C, N and O;
    the reference method is GFN2-xTB. For research, use your own potential and probe.

    Parameters
    ----------
    device, dtype : str
        As for `bare_calculator`.
    """
    from uqcalc.defaults import shipped_probe
    from uqcalc.models.bundled import bare_calculator

    probe = shipped_probe("default")
    return ReliableCalculator(bare_calculator(device, dtype), probe=probe)
