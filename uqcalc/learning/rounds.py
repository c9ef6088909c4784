"""One round of a learning loop; each stage leaves a whole file and is not repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase import Atoms

from uqcalc.annotating.copies import read_assessment
from uqcalc.annotating.frames import append_frame
from uqcalc.files.structures import read_frames
from uqcalc.files.writing import whole
from uqcalc.learning.commands import run_command
from uqcalc.learning.labelling import label
from uqcalc.learning.loopfile import LoopFile
from uqcalc.learning.picture import save_plot
from uqcalc.learning.selection import EVENT_KEY, select
from uqcalc.policy import RUN
from uqcalc.references.evaluating import FORCES
from uqcalc.runfile.file import RunFile, read_run_file
from uqcalc.runfile.running import RunOutcome, run_file
from uqcalc.watching.bondgraph import CHANGED
from uqcalc.watching.monitor import WRECKED


RUN_KEY = "uqcalc_run"  # entry of flagged frames: number of the run in its round


@dataclass(frozen=True, slots=True)
class RoundRow:
    """Results of one round.

    Attributes
    ----------
    number : int
        From 1.
    model : str
        Model of its runs.
    runs : int
        Number of runs.
    steps : int
        Steps of all its runs.
    wrecked : int
        Number of runs that ended at a physically impossible frame.
    flagged, chosen, labelled, failed : int
        Numbers of frames.
    error : float or None
        Median over the labelled frames of the RMS force error of the model of this
        round, in eV/Å (RMS over force components); None without labels.
    broken : int
        Number of runs whose last geometry has other bonds than the first one.
    """

    number: int
    model: str
    runs: int
    steps: int
    wrecked: int
    flagged: int
    chosen: int = 0
    labelled: int = 0
    failed: int = 0
    error: float | None = None
    broken: int = 0


class Round:
    """One round in its folder.

    Parameters
    ----------
    loop : LoopFile
    number : int
        From 1.
    before : Round or None
        The previous round: this round runs its model and probe. None for those of the
        run file.
    left : int or None
        Number of reference calculations that are left; None for no limit.
    say : callable
        Called with a line of text when a stage is done.
    """

    def __init__(
        self,
        loop: LoopFile,
        number: int,
        before: Round | None,
        left: int | None,
        say: Callable[[str], object],
    ) -> None:
        self.loop, self.number, self.before = loop, number, before
        self.labels = loop.labels if left is None else min(left, loop.labels)
        self.folder = loop.rounds_folder / f"{number:02d}"
        self._say = say

    @property
    def new_model(self) -> Path:
        """File of the model that this round trains."""
        return self.folder / "train" / f"model{self.loop.suffix}"

    @property
    def new_probe(self) -> Path:
        """File of the probe that this round makes."""
        return self.folder / "refit" / "model.probe"

    @property
    def trained_name(self) -> str:
        """Name under which uqcalc opens the model that this round trains."""
        return self.loop.model.replace("{model_out}", str(self.new_model))

    def done(self) -> RoundRow | None:
        """Return what the round did if it has ended; None otherwise."""
        path = self.folder / "round.json"
        if not path.exists():
            return None
        return RoundRow(**json.loads(path.read_text(encoding="utf-8")))

    def run(self) -> RoundRow:
        """Run all stages that are not done, and return what the round did.

        Raises
        ------
        LoopError
            If a command fails, or does not write its file.
        """
        found = self.only_run()
        frames = self._all_flagged()
        if frames:
            found = replace(found, **self._labelled(frames))
            if found.labelled:
                self._trained()
        with whole(self.folder / "round.json") as partial:
            partial.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
        return found

    def only_run(self) -> RoundRow:
        """Make the runs, without labels; the round can still be finished by `run`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = range(1, self.loop.runs + 1)
        outcomes = [self._one_run(number) for number in numbers]
        return RoundRow(
            number=self.number,
            model=self._first_run().model,
            runs=len(outcomes),
            steps=sum(outcome.step for outcome in outcomes),
            wrecked=sum(o.reason.startswith(WRECKED) for o in outcomes),
            flagged=len(self._all_flagged()),
            broken=sum(self.is_broken(number) for number in numbers),
        )

    def _one_run(self, number: int) -> RunOutcome:
        outcome = run_file(self._run_file(number))
        told = f"{outcome.step} steps, {len(self._flagged(number))} frames flagged"
        why = f". {outcome.reason}" if outcome.reason else ""
        self._say(f"round {self.number}, run {number}: {told}{why}")
        return outcome

    def is_broken(self, number: int) -> bool:
        """Return whether the last geometry of a run has other bonds than the first."""
        [last] = read_frames(self.folder / f"run_{number}_last.xyz")
        said = [r for r in read_assessment(last).readings if r.signal == RUN]
        told = [text for r in said for text in (*r.faults, *r.out_of_scope)]
        return any(text.startswith(CHANGED) for text in told)

    def _run_file(self, number: int) -> Path:
        """Write the run file of a run of this round, with absolute paths."""
        path = self.folder / f"run_{number}.yaml"
        if path.exists():
            return path
        given = read_run_file(self.loop.at(self.loop.run))
        before = self.before
        data = given.model_dump(mode="json", exclude_unset=True)
        data["structure"] = str(given.at(given.structure))
        data["model"] = given.model_at() if before is None else before.trained_name
        data.pop("probe", None)
        probes = given.probes
        if before is not None and self.loop.refit is not None:
            probes = [str(before.new_probe)]
        if probes:
            data["probe"] = probes[0] if len(probes) == 1 else probes
        if given.force_delta is not None and given.force_delta.head is not None:
            data["force_delta"]["head"] = str(given.at(given.force_delta.head))
        if (spread := given.functional_spread) is not None:
            at = str(given.at(spread.perturbation))
            data["functional_spread"]["perturbation"] = at
        if given.ask is not None and ".py:" in given.ask.reference:
            data["ask"]["reference"] = str(given.at(given.ask.reference))
        if "md" in data:
            further = (self.number - 1) * self.loop.runs + number - 1
            data["md"]["seed"] = data["md"].get("seed", 0) + further
        data["policy"] = {"on_unreliable": "harvest"} | data.get("policy", {})
        data["outputs"] = {"interval": given.outputs.interval}
        with whole(path) as partial:
            partial.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        return path

    def _first_run(self) -> RunFile:
        return read_run_file(self.folder / "run_1.yaml")

    def _all_flagged(self) -> list[Atoms]:
        numbers = range(1, self.loop.runs + 1)
        return [frame for number in numbers for frame in self._flagged(number)]

    def _flagged(self, number: int) -> list[Atoms]:
        """Return the flagged frames of a run, each with the number of the run."""
        path = self.folder / f"run_{number}_flagged.xyz"
        if not path.exists() or not path.stat().st_size:
            return []
        frames = read_frames(path)
        for frame in frames:
            frame.info[RUN_KEY] = number
        return frames

    def _labelled(self, frames: list[Atoms]) -> dict[str, Any]:
        """Choose frames and compute their labels."""
        path = self.folder / "chosen.xyz"
        if not path.exists():
            chosen = select(frames, self.labels, group=RUN_KEY)
            save_plot(chosen.plot, path.with_suffix(".png"))
            _write(path, list(chosen))
            self._say(f"round {self.number}: {str(chosen).splitlines()[0]}")
        count = len(read_frames(path)) if path.stat().st_size else 0
        if not count:
            return {}
        target = self.folder / "labelled.xyz"
        loop = self.loop
        done = label(read_frames(path), loop.reference_at, target, workers=loop.workers)
        self._say(f"round {self.number}: {str(done).splitlines()[0]}")
        failed = len(done.failed)
        counts = {"chosen": count, "labelled": done.labelled, "failed": failed}
        if not done.labelled:
            return counts
        errors = [_error(frame) for frame in read_frames(target)]
        return counts | {"error": float(np.median(errors))}

    def _trained(self) -> None:
        """Write training and held-out labels so far, train a model and make a probe."""
        loop = self.loop
        data, kept = self.folder / "train.xyz", self.folder / "held_out.xyz"
        if not data.exists():
            train, held = self._divided()
            _write(kept, held)
            _write(data, train)
        seeds = {"seed": loop.seed + self.number, "round": self.number}
        before = self._first_run().model.removeprefix("mace:")
        if self.before is not None:
            before = str(self.before.new_model)
        values = {"data": data, "model_in": before, **seeds}
        run_command(loop.train, self.new_model, "model_out", values, loop.place)
        self._say(f"round {self.number}: trained {self.new_model}")
        if loop.refit is not None:
            values = {"labels": kept, "model": self.trained_name, **seeds}
            run_command(loop.refit, self.new_probe, "probe_out", values, loop.place)
            self._say(f"round {self.number}: fitted {self.new_probe}")

    def _divided(self) -> tuple[list[Atoms], list[Atoms]]:
        """Return training and held-out labels of all rounds; events stay whole."""
        loop = self.loop
        train, held = self._given(loop.data), self._given(loop.probe_data)
        for number in range(1, self.number + 1):
            path = loop.rounds_folder / f"{number:02d}" / "labelled.xyz"
            if not path.exists() or not path.stat().st_size:
                continue
            frames = read_frames(path)
            events = sorted({str(frame.info[EVENT_KEY]) for frame in frames})
            rng = np.random.default_rng([loop.seed, number])
            count = int(loop.held_out * len(events))
            kept = set(rng.permutation(events)[:count].tolist())
            for frame in frames:
                out = str(frame.info[EVENT_KEY]) in kept
                frame.info[EVENT_KEY] = f"r{number}:{frame.info[EVENT_KEY]}"
                (held if out else train).append(frame)
        return train, held

    def _given(self, name: str | None) -> list[Atoms]:
        """Return labels from before the loop; a frame without an event gets its own."""
        frames = [] if name is None else read_frames(self.loop.at(name))
        for row, frame in enumerate(frames):
            frame.info.setdefault(EVENT_KEY, f"r0:e{row}")
        return frames


def _write(path: Path, frames: list[Atoms]) -> None:
    with whole(path) as partial:
        for number, frame in enumerate(frames):
            append_frame(partial, frame, f"frame {number}")


def _error(frame: Atoms) -> float:
    """Return the RMS force error of a labelled frame, eV/Å."""
    difference = frame.arrays[FORCES] - frame.arrays["predicted_forces"]
    return float(np.sqrt(np.mean(difference**2)))
