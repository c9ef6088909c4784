"""Test the halting of the workflow that users have, on one molecule at a time.

360 GFN2-xTB frames at 300 K train a small MACE, and 200 more fit a probe (boundary 100
meV/Å); a second probe has 100 labels at 600 K, too. Runs at 300 K, at 600 K and from
300 to 1500 K follow, with the true error every 5 fs. The stages are `make` (frames,
potential, runs, reference forces), `judge` (probes and verdicts) and `report`; each
continues from the files in the cache. Needs rdkit and the extras mace and xtb.
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
    STEPS,
    TIMESTEP_FS,
    kinds_of,
    label,
    read_runs,
    simulate,
    write_runs,
)
from workflow.potential import MOLECULES, SETS, Molecule, batched, sample, train
from workflow.scoring import (
    LEVELS,
    RAMP,
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
    quantiles,
    score,
    tuned,
)
from workflow.triggers import conditions
from workflow.verdicts import BOUNDARY, PROBES, judge_molecule, read_verdicts


ALPHAS = (0.1, 0.2)  # of `certify_halting`
LAGS_FS = (5, 20, 50, 100, 200)
BASELINES = {"largest force": "largest", "latent distance": "distance",
             "novelty of the probe": "novelty"}  # fmt: skip
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
    """Return the name of the folder of a molecule in the cache."""
    return name.replace(" ", "_")


def borrow(source: Path, folder: Path) -> None:
    """Copy frames, potential and probes of another molecule, but no runs."""
    for path in source.iterdir():
        if path.suffix != ".npz" and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def make(molecule: Molecule, folder: Path, until: str) -> None:
    """Make frames, potential, runs and their labels, unless they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    if molecule.of:
        borrow(folder.parent / folder_of(molecule.of), folder)
    start = time.monotonic()

    def tell(what: str) -> None:
        elapsed = (time.monotonic() - start) / 60
        print(f"{molecule.name}: {what} {elapsed:.1f} min", flush=True)

    frames = {
        purpose: sample(molecule, purpose, folder / f"{purpose}.xyz")
        for purpose in SETS
    }
    tell("frames")
    if until == "frames":
        return
    train(frames["potential"], frames["cold"], folder)
    tell("potential")
    bare, labelled = folder / "bare.npz", folder / "runs.npz"
    if until == "potential" or labelled.is_file():
        return
    if not bare.is_file():
        kinds, seed = kinds_of(molecule), molecule.seed
        starts = frames["potential"][seed::17]
        write_runs(bare, simulate(batched(folder), starts, kinds, seed))
        tell("runs")
    if until == "runs":
        return
    runs = read_runs(bare)
    for run in runs:
        label(run)
    write_runs(labelled, runs)
    bare.unlink()
    tell("reference forces")


def watched(folder: Path, molecule: str, probe: str) -> list[Watched]:
    """Return the runs of a molecule with the verdicts of a probe; empty if refused."""
    path = folder / f"{probe}.npz"
    if not path.is_file():
        return []
    runs = read_runs(folder / "runs.npz")
    pairs = zip(runs, read_verdicts(path), strict=True)
    return [Watched(molecule, run, verdicts) for run, verdicts in pairs]


def choices(tuning: Sequence[Watched]) -> dict[str, Halts]:
    """Return each condition with the limits that are best for it on ``tuning``.

    Without runs to tune on, only the conditions that need none.
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
    for name, signal in BASELINES.items() if tuning else ():
        limits = quantiles(tuning, signal)
        ranked = [(limit, by_signal(every[0], signal, limit)) for limit in limits]
        limit, halts = tuned(tuning, ranked)
        found[f"{name} > {limit:.3g}"] = halts
    for limit in (BOUNDARY, TOLERANCE):
        halts = by_error(every[0], limit)
        found[f"true error > {limit:g} eV/Å, {every[0].name}"] = halts
    for persists, confirm, level in ((10, 0, 0.5), (25, 0, 0.5), (10, 10, 0.5),
                                     (10, 10, 0.8)):  # fmt: skip
        name = f"monitor, or bond changed for {persists} fs"
        name += f" and P < {level} for {confirm} fs" if confirm else ""
        found[name] = either(usual, event(persists, confirm, level))
    return found


def rows_of(probe: str, runs: Sequence[Watched]) -> list[dict[str, Any]]:
    """Return one row for each condition and part of the runs."""
    seen = [one for one in runs if MOLECULES[one.molecule].seen]
    new = [one for one in runs if not MOLECULES[one.molecule].seen]
    parts = {"tuning": seen, "unseen": new, "all": runs if seen and new else []}
    rows = []
    for condition, halts in choices(seen).items():
        for part, chosen in parts.items():
            if chosen:
                head = {"probe": probe, "part": part, "condition": condition}
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
        target(f"{name}: |mean P - share right| on the ramps, worst molecule",
               gap, 0.05 if hot else 0.15),
    ]  # fmt: skip


def report(cache: Path, names: Sequence[str]) -> None:
    """Score all conditions, print the tables and write the results."""
    rows, gaps, targets, notes, autocorrelation = [], [], [], [], {}
    certified, events = [], []
    for probe in PROBES:
        runs = []
        for name in names:
            mine = watched(cache / folder_of(name), name, probe)
            if not mine:
                path = cache / folder_of(name) / f"{probe}.refused"
                notes.append(f"{name}, {probe}: {path.read_text(encoding='utf-8')}")
            runs += mine
            gaps += [
                {"probe": probe, "molecule": name} | calibration(mine, kind)
                for kind in (*STEADY, RAMP)
                if mine
            ]
        if not runs:
            continue
        mine = rows_of(probe, runs)
        rows += mine
        autocorrelation[probe] = flicker(runs, LAGS_FS)
        for name in names:
            own = [one for one in runs if one.molecule == name]
            found = bond_events(own, by_p(conditions(FRAME_FS)[0], 0.5))
            events += [{"probe": probe, "molecule": name} | found]
        certified += [{"probe": probe} | halves(runs, alpha) for alpha in ALPHAS]
        for row in [r for r in mine if r["condition"].startswith("monitor (")]:
            kept = {"tuning": {True}, "unseen": {False}}.get(row["part"], {True, False})
            of_part = [
                g
                for g in gaps
                if g["probe"] == probe and MOLECULES[g["molecule"]].seen in kept
            ]
            targets += targets_of(row, of_part)
    for row in rows:
        row["in_time, 95 %"] = interval(row["in_time"], row["failing"])
    print(markdown_table(rows, COLUMNS), end="\n\n")
    for part in (gaps, events, certified):
        print(markdown_table(part, {k: k for k in part[0]}), end="\n\n")
    print_targets(targets)
    write_result(
        "halting_workflow",
        seeds=[0],
        rows=rows,
        targets=targets,
        notes=[
            f"runs of {STEPS * TIMESTEP_FS / 1000:g} ps, one frame every "
            f"{FRAME_FS:g} fs; molecules {', '.join(names)}",
            *notes,
        ],
        more={
            "calibration": gaps,
            "autocorrelation": autocorrelation,
            "bond_events": events,
            "certified_on_random_halves": certified,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["make", "judge", "report"])
    parser.add_argument("--molecules", nargs="+", default=list(MOLECULES))
    parser.add_argument("--cache", type=Path, default=Path("workflow_cache"))
    parser.add_argument(
        "--until",
        default="labels",
        choices=["frames", "potential", "runs", "labels"],
        help="last part of `make`",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.stage == "report":
        report(options.cache, options.molecules)
        return
    for name in options.molecules:
        folder = options.cache / folder_of(name)
        if options.stage == "make":
            make(MOLECULES[name], folder, options.until)
        else:
            for probe in PROBES:
                judge_molecule(folder, probe)


if __name__ == "__main__":
    main()
