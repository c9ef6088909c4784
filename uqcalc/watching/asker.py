"""Ask a reference calculator during a run; continue if the potential was right."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import Atoms

from uqcalc.agreement import same_result, vanishing
from uqcalc.asking import DISAGREE, RULES, UNLABELLED
from uqcalc.quantities import parse_quantity
from uqcalc.records import Event, Level, told_apart
from uqcalc.references.evaluating import REFERENCE_KEY, Computed, attempted
from uqcalc.showing import shown_in
from uqcalc.targets import TARGETS
from uqcalc.watching.flagged import FrameFile
from uqcalc.watching.outputs import Outputs


CALLS, SPACING = 20, 50
ALARM = "alarm"  # the rule of a call that only the trigger has asked for
RIGHT_KEY = "asked_right"
ERROR_PREFIX = "asked_error_"


@dataclass(frozen=True, slots=True)
class Ask:
    """Settings of ``Monitor(on_unreliable="ask")``.

    A reference calculator evaluates a frame if the trigger of the monitor acts, or if
    the frame meets the rule "disagree" or "unlabelled" of `uqcalc.asking.why_ask`. The
    rule "low" alone makes no call: the trigger must act, which needs several
    frames. If the potential was right, the run continues and the trigger starts anew.
    If it was wrong, or if the reference fails, the run is halted. If no call is left,
    the trigger halts the run, and frames that meet a rule are only counted.

    "Right" means that the true error is at most the boundary of each probe that
    has a threshold (with a guarantee, its tolerance); the error of the stress counts
    only while the cell moves. The errors are compared as in `uqcalc.fit`: same
    quantity, unit, energy offsets and chosen atoms. A reference that lacks one of these
    quantities fails.

    Parameters
    ----------
    reference : ase calculator
        It evaluates a copy of the structure. Its random numbers from ``np.random`` do
        not change those of the run.
    labelled : path
        Extended XYZ file for the frames that it has evaluated: annotated, with
        ``REF_energy``, ``REF_forces``, ``REF_stress`` (eV, eV/Å, eV/Å³), the true
        errors ``asked_error_forces`` and so on in the unit of the boundary, and
        ``asked_right``.
    max_calls : int
        Largest number of calls. If a run continues, the frames in ``labelled`` count.
    spacing : int
        Smallest number of steps from one call to the next. In between, the last answer
        holds: a trigger that acts waits until a call is allowed. For the rules
        "disagree" and "unlabelled" the spacing doubles with each right answer, so that
        a flag that stays on for a whole run does not use up the calls.
    boundary : float or str, optional
        Largest RMS force error of a right frame, in eV/Å or with a unit. By default the
        boundaries of the probes; needed without a probe.
    name : str
        Name of the reference in the files; by default that of its class.

    Raises
    ------
    ValueError
        If a setting is out of range, or ``reference`` is not a calculator.
    LabelError
        If the boundary is not a force above zero.
    """

    reference: Any
    labelled: str | os.PathLike[str]
    max_calls: int = CALLS
    spacing: int = SPACING
    boundary: float | str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.reference, type) or not hasattr(
            self.reference, "get_property"
        ):
            msg = (
                "reference must be an ASE calculator, got "
                f"{type(self.reference).__name__} {self.reference!r}; pass an object "
                "such as TBLite(method='GFN2-xTB')"
            )
            raise ValueError(msg)
        for name in ("max_calls", "spacing"):
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not whole or value < 1:
                msg = f"{name} must be a whole number of at least 1, got {value!r}"
                raise ValueError(msg)
            object.__setattr__(self, name, int(value))
        if self.boundary is not None:
            value = parse_quantity(self.boundary, "forces")
            object.__setattr__(self, "boundary", value)
        object.__setattr__(self, "name", self.name or type(self.reference).__name__)


@dataclass(frozen=True, slots=True)
class Criterion:
    """The largest error of a right frame, of one target.

    Attributes
    ----------
    target : str
        Of `uqcalc.targets.TARGETS`.
    boundary : float
        In the unit of the target.
    offsets : mapping
        Atomic number, as text -> eV, subtracted from reference energies.
    atoms : tuple of int or None
        Atoms that the error is about; None for all.
    only_moving_cell : bool
        Whether it counts only while the cell moves, as an error of the stress.
    """

    target: str
    boundary: float
    offsets: Mapping[str, float] = field(default_factory=dict)
    atoms: tuple[int, ...] | None = None
    only_moving_cell: bool = False

    def error(
        self, atoms: Atoms, results: Mapping[str, Any], answer: Computed
    ) -> float | None:
        """Return the true error in the unit of the target; None if not comparable.

        Stresses are not comparable if one of the two calculators gives none.
        """
        target = TARGETS[self.target]
        predicted, reference = results.get(target.of), getattr(answer, target.of)
        if predicted is None or reference is None:
            return None
        if target.of == "energy":
            reference -= sum(self.offsets.get(str(z), 0.0) for z in atoms.numbers)
        if self.atoms is not None:
            chosen = list(self.atoms)
            predicted, reference = np.asarray(predicted)[chosen], reference[chosen]
        return float(target.error(predicted, reference, len(atoms)))


def criteria_of(calculator: Any, boundary: float | str | None) -> list[Criterion]:
    """Return what decides whether a frame is right.

    Parameters
    ----------
    calculator : ReliableCalculator
    boundary : float or None
        As in `Ask`.

    Raises
    ------
    ValueError
        If there is neither a boundary nor a probe for an error of one frame alone.
    """
    if boundary is not None:
        return [Criterion("forces", float(boundary))]
    policy, found = calculator.policy, []
    thresholds = {t.signal: t for t in (*policy.thresholds, *policy.moving_cell)}
    for signal in calculator.signals:
        card = getattr(getattr(signal, "probe", None), "card", None)
        threshold = thresholds.get(signal.name)
        if card is None or threshold is None or TARGETS[card.target].relative:
            continue
        largest, guarantee = card.boundary, card.guarantee
        if threshold.guarantee and guarantee is not None:
            largest = guarantee.tolerance or largest
        region = getattr(signal, "region", None)
        atoms = None if region is None else region.atoms
        only = threshold in policy.moving_cell
        found.append(Criterion(card.target, largest, card.offsets, atoms, only))
    if not found:
        msg = (
            "on_unreliable='ask' must have a probe for an error of one frame, whose "
            "boundary says what is right, got the signals "
            f"{[signal.name for signal in calculator.signals]}; add a probe, or pass "
            "on_unreliable=Ask(..., boundary='100 meV/Å')"
        )
        raise ValueError(msg)
    return found


class Asker:
    """Asks the reference of a run, and counts its answers.

    Parameters
    ----------
    settings : Ask
    calculator : ReliableCalculator
        That of the run.

    Attributes
    ----------
    right, wrong, failed : int
        Number of calls of this monitor with each outcome.
    file : FrameFile or None
        The labelled frames; None before `open`.

    Raises
    ------
    ValueError
        As `criteria_of`, or if the reference is the potential itself.
    """

    def __init__(self, settings: Ask, calculator: Any) -> None:
        own = (calculator, calculator.backbone, calculator.backbone.calculator)
        if any(settings.reference is one for one in own):
            msg = (
                "reference must be another calculator than the potential of the run, "
                f"got {settings.name} for both; pass the reference method"
            )
            raise ValueError(msg)
        self.settings = settings
        self.criteria = criteria_of(calculator, settings.boundary)
        self.right = self.wrong = self.failed = 0
        self.failures: list[str] = []
        self.file: FrameFile | None = None
        self._before = 0  # calls of the run before it was continued
        self._last: int | None = None
        self._spacing = settings.spacing  # of calls without an alarm

    def open(self, mode: str) -> FrameFile:
        """Open the file of labelled frames.

        Raises
        ------
        RecordError
            If it has other content, or exists in mode "new".
        """
        cap = self.settings.max_calls
        file = FrameFile(self.settings.labelled, cap, mode, "labelled frames")
        self.file, self._before = file, file.written
        return file

    def go_back(self, step: int) -> None:
        """Drop the labelled frames from ``step`` on, for a run that repeats them."""
        if self.file is not None:
            self._before = self.file.cut(step)

    @property
    def calls(self) -> int:
        """Number of calls, with those of the run before it was continued."""
        return self._before + self.right + self.wrong + self.failed

    def step(
        self, event: Event, structure: Any, outputs: Outputs, *, acts: bool
    ) -> str | None:
        """Ask if it is time; return why the run must be halted, None to continue.

        ``acts`` says whether the trigger acts. After a right answer the caller must
        clear the trigger (`just_right`).
        """
        if not (acts or event.ask in {DISAGREE, UNLABELLED}):
            return None
        if self.calls >= self.settings.max_calls:
            most = self.settings.max_calls
            noun = "call" if most == 1 else "calls"
            return f"UNRELIABLE after {most} {noun} of the reference" if acts else None
        least = self.settings.spacing if acts else self._spacing
        if self._last is not None and event.step - self._last < least:
            return None
        self._last = event.step
        wrong = self._ask(event, structure, outputs)
        if not acts:
            self._spacing *= 2
        return wrong

    def just_right(self, step: int) -> bool:
        """Return whether the reference, asked at ``step``, found no reason to halt."""
        return self._last == step

    def words(self) -> str:
        """Return one line for the summary of the run."""
        name, now = self.settings.name, self.right + self.wrong + self.failed
        if not now:
            return f"The reference {name} was not asked."
        line = (
            f"The reference {name} was asked {now} of at most "
            f"{self.settings.max_calls} times: {self.right} right, {self.wrong} wrong, "
            f"{self.failed} failed"
        )
        if self.failures:
            line += f" ({'; '.join(dict.fromkeys(self.failures))})"
        written = "" if self.file is None else f" Labelled frames: {self.file.path}."
        return f"{line}.{written}"

    def entry(self) -> dict[str, Any]:
        """Return the entry of the end record."""
        counts = {"right": self.right, "wrong": self.wrong, "failed": self.failed}
        return {"asked": counts | ({"why": self.failures} if self.failures else {})}

    def _ask(self, event: Event, structure: Any, outputs: Outputs) -> str | None:
        """Evaluate this frame; log and keep the answer."""
        rule, number = event.ask or ALARM, self.calls + 1
        atoms: Atoms = structure.atoms.copy()
        random = np.random.get_state()  # noqa: NPY002  (ASE's default generator)
        answer = attempted(self.settings.reference, atoms)
        np.random.set_state(random)  # noqa: NPY002
        answer = _of_another_method(structure.results, answer)
        errors = self._errors(atoms, structure.results, answer)
        counting = [
            c for c in self.criteria if structure.moves_cell or not c.only_moving_cell
        ]
        failure, missing = answer.error, {c.target for c in counting} - errors.keys()
        if missing and not failure:
            quantities = sorted({TARGETS[target].of for target in missing})
            failure = f"{' and '.join(quantities)} cannot be compared"
        right = not failure and all(errors[c.target] <= c.boundary for c in counting)
        words = failure or ", ".join(_compared(c, errors) for c in counting)
        told = f"{self.settings.name}{' failed' if failure else ''}: {words}"
        outputs.log_last_step()
        outputs.record(
            {
                "event": "asked",
                "step": event.step,
                "number": number,
                "rule": rule,
                "why": event.ask_why or "; ".join(event.reasons),
                "reference": self.settings.name,
                "right": right,
                "errors": errors,
                "boundaries": {c.target: c.boundary for c in self.criteria},
                "units": {c.target: TARGETS[c.target].unit for c in self.criteria},
                "words": told,
                **({"failed": failure} if failure else {}),
            }
        )
        self._keep(event, structure, outputs, answer, errors, right=right)
        if failure:
            self.failed += 1
            self.failures.append(failure)
            return f"The reference {told} ({RULES.get(rule, 'UNRELIABLE')})"
        if right:
            self.right += 1
            return None
        self.wrong += 1
        return f"Wrong by the reference {told} ({RULES.get(rule, 'UNRELIABLE')})"

    def _errors(
        self, atoms: Atoms, results: Mapping[str, Any], answer: Computed
    ) -> dict[str, float]:
        if answer.error:
            return {}
        found = {c.target: c.error(atoms, results, answer) for c in self.criteria}
        return {target: error for target, error in found.items() if error is not None}

    def _keep(
        self,
        event: Event,
        structure: Any,
        outputs: Outputs,
        answer: Computed,
        errors: Mapping[str, float],
        *,
        right: bool,
    ) -> None:
        """Write the labelled frame; flag the frame of a failed call."""
        frame: Atoms = structure.snapshot(event.step, described=True)
        if answer.error:
            if event.level is not Level.UNRELIABLE:  # else the monitor flags it
                outputs.flag(lambda: frame, final=True)
            return
        answer.label(frame)
        frame.info[REFERENCE_KEY] = self.settings.name
        frame.info[RIGHT_KEY] = right
        for target, error in errors.items():
            frame.info[f"{ERROR_PREFIX}{target}"] = error
        if (file := self.file) is not None:
            outputs.attempt("labelled frames", lambda: file.append(frame, final=True))


def _of_another_method(results: Mapping[str, Any], answer: Computed) -> Computed:
    """Return the answer, or a failure if its forces are those of the potential.

    Forces that vanish by symmetry are the same for all methods.
    """
    if answer.forces is None or vanishing(results["forces"], answer.forces).all():
        return answer
    if not same_result("forces", results["forces"], answer.forces):
        return answer
    return Computed(
        error="its forces are those of the potential itself; the reference must be "
        "another method"
    )


def _compared(criterion: Criterion, errors: Mapping[str, float]) -> str:
    """Return "RMS force error 0.21 eV/Å > 0.1 eV/Å"."""
    target, error = TARGETS[criterion.target], errors[criterion.target]
    sign = "<=" if error <= criterion.boundary else ">"
    unit, factor = shown_in(target.unit)
    found, most = told_apart(error * factor, criterion.boundary * factor)
    return f"{target.meaning} {found} {unit} {sign} {most} {unit}"
