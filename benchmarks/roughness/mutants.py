"""Damaged files: probes, event logs, run files, trajectories."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read, write

from roughness.outcomes import SAME, Tally, attempt
from uqcalc import annotate_file, read_log
from uqcalc.backbones import Prediction
from uqcalc.calculator import ReliableCalculator
from uqcalc.info import file_info
from uqcalc.probe.probe import FILE, Probe
from uqcalc.runfile.file import read_run_file


OTHER_TYPES: tuple[Any, ...] = (None, "x", [], {}, True, -1, math.nan, [[1]], "1e999")


def flipped(content: bytes, rng: np.random.Generator, *, most: int = 4) -> bytes:
    """Return ``content`` with one to ``most`` bytes replaced."""
    damaged = bytearray(content)
    for place in rng.integers(len(content), size=int(rng.integers(1, most + 1))):
        damaged[place] ^= int(rng.integers(1, 256))
    return bytes(damaged)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every entry of a JSON value."""
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        yield (*path, key)
        yield from leaves(inner, (*path, key))


def retyped(value: Any, rng: np.random.Generator) -> tuple[Any, str]:
    """Return a JSON value in which one entry has another type, and this entry."""
    copy = json.loads(json.dumps(value))
    paths = list(leaves(copy))
    while True:
        path = paths[int(rng.integers(len(paths)))]
        holder = copy
        for key in path[:-1]:
            holder = holder[key]
        other = OTHER_TYPES[int(rng.integers(len(OTHER_TYPES)))]
        if _another_type(other, holder[path[-1]]):
            holder[path[-1]] = other
            return copy, ".".join(map(str, path)) + f" = {other!r}"


def _another_type(new: Any, old: Any) -> bool:
    numbers = (int, float)
    if isinstance(old, numbers) and isinstance(new, numbers):
        return isinstance(old, bool) != isinstance(new, bool) or math.isnan(new)
    return type(new) is not type(old)


def probe_mutants(
    tally: Tally,
    folder: Path,
    calculator: ReliableCalculator,
    predictions: Sequence[Prediction],
    source: Path,
    count: int,
    seed: int,
) -> None:
    """Damage a probe file; a probe that loads must give the same output."""
    rng = np.random.default_rng([seed, 1])
    content, target = source.read_bytes(), folder / "mutant.probe"
    start = int.from_bytes(content[:8], "little") + 8
    tensors, card = FILE.read(source)

    def answers() -> list[Any]:
        judged = ReliableCalculator(calculator.backbone, Probe.load(target))
        return [_said(judged, prediction) for prediction in predictions]

    target.write_bytes(content)
    expected = answers()

    def case(kind: str, what: str) -> None:
        outcome, raised = attempt(answers, lambda found: found == expected)
        tally.add(kind, outcome, f"{what} {raised}")

    for _ in range(count):
        target.write_bytes(flipped(content[:start], rng) + content[start:])
        case("probe, bytes of its header", "")
        target.write_bytes(content[:start] + flipped(content[start:], rng))
        case("probe, bytes of its weights", "")
        target.write_bytes(content[: int(rng.integers(len(content)))])
        case("probe, truncated", "")
        target.unlink()
        changed, where = retyped(card, rng)
        outcome, raised = attempt(
            lambda changed=changed: FILE.write(target, tensors, changed), lambda _: True
        )
        if outcome == SAME:
            case("probe, another type on its card", where)
        else:
            tally.add("probe, another type on its card", outcome, f"{where} {raised}")
        name = str(rng.choice(sorted(k for k in tensors if _weights(tensors[k]))))
        value = float(
            rng.choice([math.nan, -math.inf])
        )  # +inf: a limit that is not set
        wild = {k: v.clone() for k, v in tensors.items()}
        wild[name].view(-1)[int(rng.integers(wild[name].numel()))] = value
        target.unlink(missing_ok=True)
        outcome, raised = attempt(
            lambda wild=wild: FILE.write(target, wild, card), lambda _: True
        )
        kind = "probe, a weight that is not finite"
        if outcome == SAME:
            case(kind, f"{name} = {value}")
        else:
            tally.add(kind, outcome, f"{name} = {value} {raised}")


def _weights(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0


def _said(calculator: ReliableCalculator, prediction: Prediction) -> Any:
    found = calculator.judge(prediction)
    return str(found), {k: np.asarray(v).tolist() for k, v in found.results().items()}


def log_mutants(tally: Tally, folder: Path, log: Path, count: int, seed: int) -> None:
    """Damage an event log; the records that are read must be the first ones."""
    rng = np.random.default_rng([seed, 2])
    content, target = log.read_bytes(), folder / "mutant.jsonl"
    lines = content.splitlines(keepends=True)
    target.write_bytes(content)
    expected = list(read_log(target))

    def records() -> list[Any]:
        file_info(target)
        return list(read_log(target))

    def case(kind: str, what: str = "", *, fewest: int = len(expected)) -> None:
        def same(found: Any) -> bool:
            # a cut log reads as that of a killed run
            return len(found) >= fewest and bool(found == expected[: len(found)])

        outcome, raised = attempt(records, same)
        tally.add(kind, outcome, f"{what} {raised}")

    for _ in range(count):
        target.write_bytes(flipped(content, rng))
        case("log, bytes", fewest=len(expected) - 1)  # the last line end can be hit
        target.write_bytes(content[: int(rng.integers(1, len(content)))])
        case("log, truncated", fewest=0)
        row = int(rng.integers(1, len(lines) - 1))
        target.write_bytes(b"".join(lines[:row] + lines[row + 1 :]))
        case("log, a record missing", f"line {row + 1}")
        other = 1 + row % (len(lines) - 2)
        swapped = list(lines)
        swapped[row], swapped[other] = swapped[other], swapped[row]
        target.write_bytes(b"".join(swapped))
        case("log, two records swapped", f"lines {row + 1} and {other + 1}")
        changed, where = retyped(json.loads(lines[row]), rng)
        text = (json.dumps(changed) + "\n").encode()
        target.write_bytes(b"".join([*lines[:row], text, *lines[row + 1 :]]))
        case("log, another type in a record", where)


def run_file_mutants(
    tally: Tally, folder: Path, text: str, count: int, seed: int
) -> None:
    """Damage a run file so that it is invalid; each must be refused."""
    import yaml

    rng = np.random.default_rng([seed, 3])
    target, sound = folder / "run.yaml", yaml.safe_load(text)
    write(
        folder / str(sound["structure"]), Atoms("OH", positions=[[0, 0, 0], [0, 0, 1]])
    )

    def refuse(kind: str, content: bytes, what: str) -> None:
        target.write_bytes(content)
        outcome, raised = attempt(lambda: read_run_file(target), lambda _: False)
        tally.add(kind, outcome, f"{what} {raised}")

    for _ in range(count):
        changed, where = retyped(sound, rng)
        if not where.endswith(" = None"):  # an entry without a value counts as left out
            dumped = yaml.safe_dump(changed).encode()
            refuse("run file, another type", dumped, where)
        copy = json.loads(json.dumps(sound))
        copy["md"] = {f"{k}_": v for k, v in copy["md"].items()}
        copy["md"] |= {str(rng.integers(10**6)): 1}
        refuse("run file, unknown entries", yaml.safe_dump(copy).encode(), "")
        noise = rng.integers(0, 256, int(rng.integers(1, 400)), dtype=np.uint8)
        refuse("run file, noise", noise.tobytes(), "")


def trajectory_mutants(
    tally: Tally,
    folder: Path,
    frames: Sequence[Atoms],
    calculator: ReliableCalculator,
    count: int,
    seed: int,
) -> None:
    """Damage a trajectory; each frame must be annotated, or named as left out."""
    rng = np.random.default_rng([seed, 4])
    for ending in ("xyz", "traj"):
        sound = folder / f"sound.{ending}"
        write(sound, list(frames))
        content = sound.read_bytes()
        for _ in range(count):
            source = folder / f"mutant.{ending}"
            target = folder / "annotated.xyz"
            target.unlink(missing_ok=True)
            cut = content[: int(rng.integers(1, len(content)))]
            damaged = cut if rng.random() < 0.3 else flipped(content, rng)
            source.write_bytes(damaged)

            outcome, raised = attempt(
                lambda source=source, target=target: annotate_file(
                    source, target, calculator
                ),
                lambda summary, target=target: _all_there(target, summary, frames),
            )
            tally.add(f"trajectory, {ending}", outcome, raised)


def _all_there(target: Path, summary: Any, frames: Sequence[Atoms]) -> bool:
    """Return whether each frame that was read is in the output.

    A changed digit gives another valid geometry, which no program can notice. A file
    that is cut between two frames is a shorter trajectory.
    """
    back = read(target, ":") if summary.frames else []
    return len(back) == summary.frames <= len(frames)
