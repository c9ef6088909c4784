"""Test damaged files, garbage structures, and several threads.

Each case has one of five outcomes: the result of sound input, a clear error, a
different result without an error, an exception of another package, or a use of memory
or time above a limit. The bundled potential and CHGNet with the shipped probes judge
garbage structures; the script counts the share of RELIABLE by kind. With ``--previous``
(a folder with probes of an earlier version) it also counts the right labelled frames
that were RELIABLE with these probes and still are; this needs the labels in ``--data``.

    python benchmarks/rough.py             # a few minutes
    python benchmarks/rough.py --seed 7    # other mutants, other garbage
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.io import read
from ase.md.verlet import VelocityVerlet
from common import print_table, print_targets, target, write_result
from roughness.garbage import Maker, crystal_kinds, draw, molecular_kinds
from roughness.mutants import (
    log_mutants,
    probe_mutants,
    run_file_mutants,
    trajectory_mutants,
)
from roughness.outcomes import FOREIGN, OUTCOMES, SILENT, STUCK, Tally, attempt
from roughness.threads import in_threads

from uqcalc import Level, Monitor, Probe, ReliableCalculator, open_model, tap
from uqcalc.errors import UqcalcError


MOST_MEMORY = 4 * 2**30  # bytes above the use at the start
DATA = Path(__file__).parent.parent / "uqcalc" / "data"
RUN_FILE = Path(__file__).parent.parent / "examples" / "run.yaml"
LIMITS = {"bundled potential": 0.005, "CHGNet": 0.02}


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + MOST_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def judge_garbage(
    tally: Tally, name: str, calculator: ReliableCalculator,
    kinds: dict[str, Maker], count: int, seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the share of RELIABLE of each kind, and count errors in ``tally``."""
    levels: dict[str, list[Level | None]] = {kind: [] for kind in kinds}
    for kind, atoms in draw(kinds, count, seed):

        def level(atoms: Atoms = atoms, kind: str = kind) -> bool:
            found = calculator.assess(atoms).level
            levels[kind].append(found)
            return found is Level.RELIABLE

        before = len(levels[kind])
        outcome, raised = attempt(level, lambda reliable: not reliable)
        if len(levels[kind]) == before:
            levels[kind].append(None)
        # RELIABLE garbage has its own table
        shown = outcome if outcome != SILENT else "same answer"
        tally.add(f"garbage, {name}", shown, f"{kind}: {raised}")
    return [
        {
            "potential": name,
            "kind": kind,
            "structures": len(found),
            "refused": sum(level is None for level in found),
            "reliable": sum(level is Level.RELIABLE for level in found),
            "suspect": sum(level is Level.SUSPECT for level in found),
            "unreliable": sum(level is Level.UNRELIABLE for level in found),
        }
        for kind, found in levels.items()
    ]


def short_log(folder: Path, calculator: ReliableCalculator) -> Path:
    """Return the log of a short run of the bundled potential."""
    atoms = molecule("CH3OH")
    atoms.rattle(0.05, seed=1)
    atoms.calc = calculator
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    Monitor(dynamics, log=folder / "run.jsonl", on_unreliable="warn")
    dynamics.run(20)
    return folder / "run.jsonl"


def bad_files(
    tally: Tally, calculator: ReliableCalculator, count: int, seed: int
) -> None:
    frames = []
    for row, name in enumerate(("CH3OH", "CH3CHO", "H2O", "C6H6", "CH3CN")):
        frames.append(molecule(name))
        frames[-1].rattle(0.03, seed=row)
    predictions = [
        calculator.backbone(atoms, ["energy", "forces"]).own() for atoms in frames
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = short_log(folder, calculator)
        probe_mutants(
            tally, folder, calculator, predictions, DATA / "default.probe", count, seed
        )
        log_mutants(tally, folder, log, count, seed)
        text = RUN_FILE.read_text(encoding="utf-8")
        run_file_mutants(tally, folder, text, count, seed)
        with redirect_stderr(StringIO()):  # hides a progress bar for each file
            trajectory_mutants(tally, folder, frames, calculator, count, seed)


def kept(old: Path, data: Path, count: int, seed: int) -> tuple[int, int, int] | None:
    """Return how many right frames were RELIABLE, still are, and fail `Sanity`.

    The frames are of the MatterSim sets; the probes are those of CHGNet.
    """
    files = sorted(data.glob("*.xyz"))
    if not files or not old.is_file():
        return None
    frames: list[Atoms] = [a for file in files for a in read(file, ":")]
    frames = [a for a in frames if 2 <= len(a) <= 40]
    chosen = np.random.default_rng(seed).permutation(len(frames))
    backbone = tap(open_model("chgnet"))
    now = ReliableCalculator(backbone)
    then = ReliableCalculator(backbone, Probe.load(old))
    boundary = Probe.load(old).card.boundary
    was, still, sanity = 0, 0, 0
    for row in chosen[: 12 * count]:
        atoms = frames[row]
        reference = np.asarray(atoms.arrays.get("forces", atoms.get_forces()))
        try:
            prediction = backbone(Atoms(atoms), ["energy", "forces", "stress"])
        except UqcalcError:
            continue
        error = np.sqrt(np.mean((prediction.forces - reference) ** 2))
        if np.abs(prediction.forces).max() < 1e-3 or not error <= boundary:
            continue  # forces that vanish by symmetry are no test of the potential
        probe_alone = then.policy([then.judge(prediction).reading("probe")])
        if probe_alone.level is not Level.RELIABLE:
            continue
        was += 1
        found = now.judge(prediction)
        still += found.level is Level.RELIABLE
        sanity += any(why.startswith("sanity") for why in found.verdict.reasons)
    return was, still, sanity


def share_targets(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for name, limit in LIMITS.items():
        mine = [row for row in rows if row["potential"] == name]
        if not mine:
            continue
        total = sum(row["reliable"] for row in mine)
        share = total / sum(row["structures"] for row in mine)
        worst = max(row["reliable"] / row["structures"] for row in mine)
        yield target(f"RELIABLE on garbage, {name}, all kinds together", share, limit)
        yield target(f"RELIABLE on garbage, {name}, worst kind", worst, limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mattersim"))
    parser.add_argument("--previous", type=Path, help="folder with chgnet.probe")
    options = parser.parse_args()
    bundled = ReliableCalculator(tap(open_model("default")))
    chgnet = ReliableCalculator(tap(open_model("chgnet")))
    limit_memory()
    tally = Tally()
    bad_files(tally, bundled, options.count, options.seed)
    rows = []
    for name, calculator, kinds in (
        ("bundled potential", bundled, molecular_kinds()),
        ("CHGNet", chgnet, crystal_kinds()),
    ):
        rows += judge_garbage(
            tally, name, calculator, kinds, options.count, options.seed
        )
        some = [atoms for _, atoms in draw(kinds, 4, options.seed + 1)]
        sound = [a for a in some if _accepted(calculator, a)]
        model = calculator.backbone.calculator
        in_threads(
            tally, f"threads, {name}", lambda model=model: ReliableCalculator(model),
            sound, workers=4,
        )  # fmt: skip
    targets = [
        target("other answers in silence", tally.total(SILENT), 0),
        target("foreign tracebacks", tally.total(FOREIGN), 0),
        target("memory or hang", tally.total(STUCK), 0),
        *share_targets(rows),
    ]
    if options.previous is not None and (
        found := kept(
            options.previous / "chgnet.probe",
            options.data,
            options.count,
            options.seed,
        )
    ):
        was, still, sanity = found
        name = f"of {was} right CHGNet frames RELIABLE before, share RELIABLE now"
        targets.append(target(name, still / was, 0.95, at_most=False))
        targets.append(target("right frames lost to Sanity", sanity, 0))
    columns = {"kind": "kind", "tried": "tried"} | {name: name for name in OUTCOMES}
    print_table("bad input", tally.rows(), columns)
    print_table("garbage", rows, {key: key for key in rows[0]})
    print_targets(targets)
    for name, example in tally.examples.items():
        print(f"{name}: {example}")
    path = write_result(
        "rough",
        seeds=[options.seed],
        rows=tally.rows(),
        targets=targets,
        notes=[
            "a digit that is flipped in a trajectory is another geometry: no program "
            "can know; counted is whether every frame that was read is written",
            "a log or trajectory that was cut reads as one that ended there",
        ],
        more={"garbage": rows, "examples": tally.examples},
    )
    print(path)


def _accepted(calculator: ReliableCalculator, atoms: Atoms) -> bool:
    try:
        calculator.assess(atoms)
    except UqcalcError:
        return False
    return True


if __name__ == "__main__":
    main()
