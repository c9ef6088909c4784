"""Finished runs with verdicts and true errors, for `certify_halting`."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.agreement import same_result
from uqcalc.annotating.copies import PREDICTED, read_assessment
from uqcalc.errors import LabelError, RecordError
from uqcalc.files.structures import read_frames
from uqcalc.labels.labels import Labels
from uqcalc.labels.ownresults import refuse_own_results
from uqcalc.policy import Policy
from uqcalc.records import Level
from uqcalc.targets import TARGETS
from uqcalc.watching.eventlog import read_log, read_standing
from uqcalc.watching.logrecords import check_record
from uqcalc.watching.trigger import Trigger


FORCES = Labels("forces")
ERRORS = ".errors.jsonl"  # ending of the file of errors that belongs to an event log


@dataclass(frozen=True, slots=True, eq=False)
class JudgedRun:
    """The verdicts of one run of molecular dynamics, and the true errors of its frames.

    Attributes
    ----------
    name : str
        Name in messages: the file.
    time_fs : array (frames,)
        Time of each frame in fs, increasing.
    risks : tuple of mapping, (frames,)
        Risk of each signal by name, and published values such as ``probe_novelty``.
    levels : tuple of Level or None, (frames,)
        None if the frame was not judged.
    error : array (frames,)
        True error of a target: RMS force error in eV/Å or RMS stress error in eV/Å³;
        infinite if the potential gave NaN or infinity; NaN if there is no reference.
    acted_fs : float or None
        When the monitor of the run first acted; None if it did not, or without one.
    policy : Policy or None
        Policy of the run; None if the file does not have it.
    """

    name: str
    time_fs: NDArray[np.float64]
    risks: tuple[Mapping[str, float], ...]
    levels: tuple[Level | None, ...]
    error: NDArray[np.float64]
    acted_fs: float | None = None
    policy: Policy | None = None

    def __post_init__(self) -> None:
        count = len(self.time_fs)
        lengths = (count, len(self.risks), len(self.levels), len(self.error))
        if len(set(lengths)) > 1 or count < 2:
            msg = (
                f"run {self.name} must have at least two frames, and one entry of each "
                f"kind for every frame, got lengths {lengths}"
            )
            raise LabelError(msg)
        if not np.all(np.diff(self.time_fs) > 0):
            msg = f"time_fs of run {self.name} must increase, got {self.time_fs}"
            raise LabelError(msg)

    @classmethod
    def from_frames(
        cls,
        frames: Iterable[Atoms],
        *,
        timestep_fs: float | None = None,
        name: str = "frames",
        labels: Labels = FORCES,
    ) -> JudgedRun:
        """Return a run from annotated frames (`uqcalc.annotate`) with a reference.

        Parameters
        ----------
        frames : iterable of Atoms
            Frames of one run, in order. Frames without the label count as frames
            without a reference.
        timestep_fs : float, optional
            Time between the frames in fs; by default ``info["time_fs"]`` of each.
        labels : Labels
            Target ("forces" or "stress"), and key of the reference.

        Raises
        ------
        RecordError
            If a frame is not annotated.
        LabelError
            If a time or a prediction is missing, no frame has a reference, or the
            references are results of the potential itself.
        """
        kept = list(frames)
        _refuse_own(kept, labels)
        assessments = [read_assessment(frame) for frame in kept]
        return cls(
            name,
            np.array([_time(f, i, timestep_fs) for i, f in enumerate(kept)], float),
            tuple(
                {r.signal: r.risk for r in a.readings} | _scalars(a.results())
                for a in assessments
            ),
            tuple(a.level for a in assessments),
            _known([_error(frame, labels) for frame in kept], name),
        )

    @classmethod
    def from_log(
        cls, path: str | os.PathLike[str], errors: Mapping[int, float]
    ) -> JudgedRun:
        """Return a run from the event log of a `uqcalc.Monitor`.

        Parameters
        ----------
        path : path
            The log must have every step (``log_every=1``) and no rewinds.
        errors : mapping
            Step -> true error of the target, for the steps with a reference.

        Raises
        ------
        RecordError
            If the file is not the log of such a run of molecular dynamics.
        LabelError
            If ``errors`` has a step that the log lacks, or is empty.
        """
        policy = _policy_of_log(path)
        steps = []
        acted = None
        for record in read_standing(path):
            check_record(record, path)
            if record["event"] == "rewind":
                msg = (
                    f"runs must not be rewound, got {path} with a rewind; leave it out"
                )
                raise RecordError(msg)
            if record["event"] == "warning":
                acted = record["step"] if acted is None else acted
                continue
            steps.append(record)
        ends = [r for r in read_log(path) if r.get("event") == "end"]
        if acted is None and ends and ends[0].get("how") == "halted":
            acted = ends[0].get("step")
        times = {r["step"]: r["time_fs"] for r in steps}
        if unknown := sorted(set(errors) - set(times)):
            msg = (
                f"errors must be of steps in {path}, got step {unknown[0]}; remove the "
                "errors of other steps"
            )
            raise LabelError(msg)
        if any(time is None for time in times.values()):
            msg = (
                f"log must be of molecular dynamics, got {path} of an optimiser; leave "
                "it out"
            )
            raise RecordError(msg)
        found = [errors.get(r["step"], math.nan) for r in steps]
        return cls(
            os.fspath(path),
            np.array([r["time_fs"] for r in steps], dtype=float),
            tuple(_scalars(r.get("values", {}) | r["readings"]) for r in steps),
            tuple(None if r["level"] is None else Level[r["level"]] for r in steps),
            _known(found, os.fspath(path)),
            None if acted is None else float(times[acted]),
            policy,
        )

    @property
    def interval_fs(self) -> float:
        """Median time between frames in fs."""
        return float(np.median(np.diff(self.time_fs)))

    def failed_fs(self, tolerance: float, lasting_fs: float) -> float | None:
        """Return when the run fails; None if it does not.

        It is the time of the first frame of the first stretch of frames, all with an
        error above ``tolerance`` (unit of the errors), that lasts ``lasting_fs``. A
        frame counts for the median time between frames with a reference; frames without
        one neither end nor lengthen a stretch. An infinite error is a failure at once.
        """
        known = ~np.isnan(self.error)
        times, errors = self.time_fs[known], self.error[known]
        spacing = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
        start: float | None = None
        for time, error in zip(times.tolist(), errors.tolist(), strict=True):
            if error <= tolerance:
                start = None
                continue
            start = time if start is None else start
            if math.isinf(error) or time - start + spacing >= lasting_fs - 1e-6:
                return start
        return None

    def severities(self, policy: Policy) -> list[float | None]:
        """Return the largest risk / limit of each frame, (frames,).

        The limit is ``unreliable`` of each threshold. A frame above 1 is UNRELIABLE.
        It is infinite for a risk of NaN and for a frame that is UNRELIABLE for another
        reason, and None for a frame that was not judged.
        """
        found: list[float | None] = []
        for risks, level in zip(self.risks, self.levels, strict=True):
            if level is None:
                found.append(None)
                continue
            ratios = [
                _ratio(risks[t.signal], t.unreliable)
                for t in policy.thresholds
                if t.signal in risks
            ]
            worst = max(ratios, default=-math.inf)
            if level is Level.UNRELIABLE and worst <= 1:
                worst = math.inf
            found.append(worst if worst > -math.inf else None)
        return found

    def acts_fs(self, policy: Policy, trigger: Trigger) -> list[tuple[float, float]]:
        """Return the times at which the monitor acts, for all limits at once.

        The result are pairs (time in fs, factor): with the limits of ``policy`` times
        a smaller factor, the monitor has acted by that time. Both increase.
        """
        steps = np.round(self.time_fs / self.interval_fs).astype(int)
        peaks = trigger.peaks(steps.tolist(), self.severities(policy))
        highest = -math.inf
        found = []
        for time, peak in zip(self.time_fs.tolist(), peaks.tolist(), strict=True):
            if self.acted_fs is not None and time >= self.acted_fs:
                peak = math.inf
            if peak > highest:
                highest = peak
                found.append((time, peak))
        return found


def read_runs(
    paths: Iterable[str | os.PathLike[str]],
    *,
    timestep_fs: float | None = None,
    labels: Labels = FORCES,
) -> Iterator[JudgedRun]:
    """Yield the run of each file.

    An event log ``NAME.jsonl`` has its errors in ``NAME.errors.jsonl``, lines such as
    ``{"step": 10, "error": 0.12}`` in the unit of the target (eV/Å or eV/Å³). Any other
    file is one of annotated frames (`JudgedRun.from_frames`). Files of errors among
    ``paths``, as ``*.jsonl`` gives them, are read with their log only.

    Raises
    ------
    RecordError, LabelError
        As `JudgedRun.from_frames` and `JudgedRun.from_log`; also if the file of errors
        is missing or damaged, or two files are of the same run.
    """
    known: dict[str, str] = {}
    for path in map(Path, paths):
        if path.name.endswith(ERRORS):
            continue
        if path.suffix == ".jsonl":
            run = JudgedRun.from_log(path, read_errors(path.with_suffix(ERRORS)))
        else:
            run = JudgedRun.from_frames(
                read_frames(path),
                timestep_fs=timestep_fs,
                name=str(path),
                labels=labels,
            )
        digest = _digest(run)
        if digest in known:
            msg = (
                f"files must be of different runs, got {run.name} with the times and "
                f"risks of {known[digest]}; give each run once"
            )
            raise LabelError(msg)
        known[digest] = run.name
        yield run


def _digest(run: JudgedRun) -> str:
    """Return a hash of times and risks: two runs with the same one are one run."""
    whole = hashlib.sha256(run.time_fs.tobytes())
    for risks in run.risks:
        whole.update(repr(sorted(risks.items())).encode())
    return whole.hexdigest()


def read_errors(path: Path) -> dict[int, float]:
    """Return the errors of the steps of a log by step."""
    if not path.is_file():
        msg = (
            f"true errors of an event log must be in {path}, got no such file; write "
            'lines such as {"step": 10, "error": 0.12}, in eV/Å (stress: eV/Å³)'
        )
        raise RecordError(msg)
    found: dict[int, float] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            found[int(row["step"])] = _size(float(row["error"]))
        except (ValueError, TypeError, LookupError) as error:
            msg = (
                f'line {number} of {path} must be {{"step": int, "error": float}} with '
                f"an error of at least 0, got {line[:60]!r}"
            )
            raise RecordError(msg) from error
    return found


def _size(error: float) -> float:
    if error < 0:
        msg = f"error must be at least 0, got {error}"
        raise ValueError(msg)
    return error


def _policy_of_log(path: str | os.PathLike[str]) -> Policy:
    """Return the policy in the last header of a log with every step."""
    headers = [r for r in read_log(path) if r.get("event") == "header"]
    for header in headers:
        check_record(header, path)
        if header.get("log_every", 1) != 1:
            msg = (
                f"log must have every step, got {path} with log_every="
                f"{header['log_every']}; run with log_every=1"
            )
            raise RecordError(msg)
    if not headers or not headers[-1]["run"].get("policy"):
        msg = (
            f"log must begin with a header with a policy, got {path} without one; pass "
            "a log of Monitor or uqcalc run"
        )
        raise RecordError(msg)
    return Policy.from_dict(headers[-1]["run"]["policy"])


def _time(frame: Atoms, index: int, timestep_fs: float | None) -> float:
    if timestep_fs is not None:
        return index * timestep_fs
    if "time_fs" not in frame.info:
        msg = (
            f"frame {index} must have its time in info['time_fs'], got none; give the "
            "time between the frames (timestep_fs)"
        )
        raise LabelError(msg)
    return float(frame.info["time_fs"])


def _error(frame: Atoms, labels: Labels) -> float:
    """Return the error of the target in its unit; NaN without a reference."""
    reference = labels.reference(frame)
    if reference is None:
        return math.nan
    place = frame.arrays if labels.of == "forces" else frame.info
    predicted = place.get(f"{PREDICTED}{labels.of}")
    if predicted is None and f"{PREDICTED}energy" in frame.info:
        msg = (
            f"frames with a reference must have {PREDICTED}{labels.of}, got none; "
            "annotate with a potential that gives it"
        )
        raise LabelError(msg)
    if predicted is None or not np.isfinite(predicted).all():
        return math.inf  # the potential could not evaluate the frame
    target = TARGETS[labels.target]
    return float(target.error(np.asarray(predicted), reference, len(frame)))


def _refuse_own(frames: Sequence[Atoms], labels: Labels) -> None:
    """Refuse references that are results of the potential itself (LabelError)."""
    own, compared = [], 0
    for row, frame in enumerate(frames):
        reference = labels.reference(frame)
        place = frame.arrays if labels.of == "forces" else frame.info
        predicted = place.get(f"{PREDICTED}{labels.of}")
        if reference is None or predicted is None:
            continue
        compared += 1
        if same_result(labels.of, np.asarray(predicted), reference):
            own.append(row)
    refuse_own_results(own, compared, labels)


def _known(errors: list[float], name: str) -> NDArray[np.float64]:
    found = np.array(errors, dtype=float)
    if np.isnan(found).all():
        msg = f"run {name} must have frames with a reference, got none; label some"
        raise LabelError(msg)
    return found


def _scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the scalar entries; null in a log, which is NaN or infinite, is NaN."""
    return {
        key: math.nan if value is None else float(value)
        for key, value in values.items()
        if value is None or np.ndim(value) == 0
    }


def _ratio(risk: float, limit: float) -> float:
    if math.isnan(risk):
        return math.inf
    if limit <= 0:  # a factor cannot make this limit stricter
        return math.inf if risk > limit else -math.inf
    return risk / limit
