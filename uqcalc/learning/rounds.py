"""One round of a learning loop; each stage leaves a whole file and is not repeated."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase import Atoms

from uqcalc.annotating.frames import append_frame
from uqcalc.errors import LoopError
from uqcalc.files.structures import read_frames
from uqcalc.files.writing import whole
from uqcalc.learning.labelling import label
from uqcalc.learning.loopfile import LoopFile
from uqcalc.learning.picture import save_plot
from uqcalc.learning.selection import EVENT_KEY, select
from uqcalc.references.evaluating import FORCES
from uqcalc.runfile.file import read_run_file
from uqcalc.runfile.running import run_file


_LAST_LINES = 5  # of a command's output, in a message


@dataclass(frozen=True, slots=True)
class RoundRow:
    """What one round did.

    Attributes
    ----------
    number : int
        From 1.
    model : str
        Model of its run.
    steps : int
        Last step of its run.
    how : str
        "finished" or "halted".
    flagged, chosen, labelled, failed : int
        Numbers of frames.
    error : float or None
        Median over the labelled frames of the RMS force error of the model of this
        round, in eV/Å (RMS over atoms of |ΔF|); None without labels.
    """

    number: int
    model: str
    steps: int
    how: str
    flagged: int
    chosen: int = 0
    labelled: int = 0
    failed: int = 0
    error: float | None = None


class Round:
    """One round in its folder.

    Parameters
    ----------
    loop : LoopFile
    number : int
        From 1.
    model, probe : str or None
        Model and probe of its run; None for those of the run file.
    left : int or None
        Number of reference calculations that are left; None for no limit.
    """

    def __init__(
        self,
        loop: LoopFile,
        number: int,
        model: str | None,
        probe: Path | None,
        left: int | None,
    ) -> None:
        self.loop, self.number, self.model, self.probe = loop, number, model, probe
        self.labels = loop.labels if left is None else min(left, loop.labels)
        self.folder = loop.rounds_folder / f"{number:02d}"

    @property
    def new_model(self) -> Path:
        """File of the model that this round trains."""
        return self.folder / f"model{self.loop.suffix}"

    @property
    def new_probe(self) -> Path:
        """File of the probe that this round makes."""
        return self.folder / "probe.probe"

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
        self.folder.mkdir(parents=True, exist_ok=True)
        outcome = run_file(self._run_file())
        flagged = self.folder / "run_flagged.xyz"
        frames: list[Atoms] = []
        if flagged.exists() and flagged.stat().st_size:
            frames = read_frames(flagged)
        row: dict[str, Any] = {
            "number": self.number,
            "model": read_run_file(self.folder / "run.yaml").model,
            "steps": outcome.step,
            "how": outcome.how,
            "flagged": len(frames),
        }
        if frames:
            row |= self._labelled(frames)
            if row["labelled"]:
                self._trained()
        found = RoundRow(**row)
        with whole(self.folder / "round.json") as partial:
            partial.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
        return found

    def _run_file(self) -> Path:
        """Write the run file of this round, with absolute paths."""
        path = self.folder / "run.yaml"
        if path.exists():
            return path
        given = read_run_file(self.loop.at(self.loop.run))
        data = given.model_dump(mode="json", exclude_unset=True)
        data["structure"] = str(given.at(given.structure))
        data["model"] = self.model or given.model_at()
        data.pop("probe", None)
        probes = [str(self.probe)] if self.probe else given.probes
        if probes:
            data["probe"] = probes[0] if len(probes) == 1 else probes
        if "md" in data:
            data["md"]["seed"] = data["md"].get("seed", 0) + self.number - 1
        data["policy"] = {"on_unreliable": "harvest"} | data.get("policy", {})
        data["outputs"] = {"interval": given.outputs.interval}
        with whole(path) as partial:
            partial.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        return path

    def _labelled(self, frames: list[Atoms]) -> dict[str, Any]:
        """Choose frames and compute their labels."""
        path = self.folder / "chosen.xyz"
        if not path.exists():
            chosen = select(frames, self.labels)
            save_plot(chosen.plot, path.with_suffix(".png"))
            _write(path, list(chosen))
        count = len(read_frames(path)) if path.stat().st_size else 0
        if not count:
            return {}
        target = self.folder / "labelled.xyz"
        done = label(
            read_frames(path), self.loop.reference, target, workers=self.loop.workers
        )
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
        run = read_run_file(self.folder / "run.yaml")
        before = run.model.removeprefix("mace:")
        values = {"data": data, "model_in": before, **seeds}
        self._command(loop.train, "train", self.new_model, "model_out", values)
        if loop.refit is not None:
            values = {"labels": kept, "model": self.trained_name(), **seeds}
            self._command(loop.refit, "refit", self.new_probe, "probe_out", values)

    def trained_name(self) -> str:
        """Return the name under which uqcalc opens the model of this round."""
        return self.loop.model.replace("{model_out}", str(self.new_model))

    def _divided(self) -> tuple[list[Atoms], list[Atoms]]:
        """Return training and held-out labels of all rounds; events stay whole."""
        loop = self.loop
        train = [] if loop.data is None else read_frames(loop.at(loop.data))
        held: list[Atoms] = []
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

    def _command(
        self, text: str, name: str, output: Path, key: str, values: dict[str, Any]
    ) -> None:
        """Run a command unless its file exists; the file appears when it is whole.

        Raises
        ------
        LoopError
            If the command cannot start, ends with another status than 0, or does not
            write its file.
        """
        if output.exists():
            return
        partial = output.with_name(f"partial_{output.name}")
        partial.unlink(missing_ok=True)
        words = [word.format(**{key: partial}, **values) for word in shlex.split(text)]
        log = self.folder / f"{name}.log"
        with log.open("wb") as stream:
            try:
                done = subprocess.run(
                    words,
                    cwd=self.loop.place,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    check=False,
                )
            except OSError as error:
                msg = f"{name} must be a command that starts, got {words[0]} ({error})"
                raise LoopError(msg) from error
        if done.returncode:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()
            msg = (
                f"{name} must end with status 0, got {done.returncode} in round "
                f"{self.number}: {' / '.join(last[-_LAST_LINES:])}; see {log}, and "
                "repeat the command"
            )
            raise LoopError(msg)
        if not partial.is_file() or not partial.stat().st_size:
            msg = (
                f"{name} must write {{{key}}}, got no file {partial} in round "
                f"{self.number}; see {log}"
            )
            raise LoopError(msg)
        partial.replace(output)


def _write(path: Path, frames: list[Atoms]) -> None:
    with whole(path) as partial:
        for number, frame in enumerate(frames):
            append_frame(partial, frame, f"frame {number}")


def _error(frame: Atoms) -> float:
    """Return the RMS over atoms of |ΔF| of a labelled frame, eV/Å."""
    difference = frame.arrays[FORCES] - frame.arrays["predicted_forces"]
    return float(np.sqrt((difference**2).sum(axis=1).mean()))
