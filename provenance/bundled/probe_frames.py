"""Label frames for the fit and the test of the probe of the bundled potential.

Stage `md` samples GFN2-xTB dynamics of the probe molecules (no model needed). Stage
`ramps` heats the molecules on the trained backbone until it fails, labels these
frames with GFN2-xTB and writes `probe_train.xyz`, `probe_calibration.xyz` and
`probe_test.xyz`, all kinds of frames together.
"""

import argparse
import json
import multiprocessing
import time
from functools import partial
from pathlib import Path

import ase.io
import torch
from ase import Atoms
from molecules import write_text
from ramp import Schedule, batched, new_ramp, run_ramps
from sample import (
    FAILURES,
    Sampled,
    collect,
    embed,
    read_groups,
    run_plan,
    seed_of,
    snapshot,
    write_frames,
    xtb,
)

from uqcalc.models.bundled import load_model


SPLITS = ("probe_train", "probe_calibration", "probe_test")
PLAN = {300.0: 6, 600.0: 3, 1000.0: 3}
SEEN_PLAN = {300.0: 3, 600.0: 2}
SEEN_MOLECULES = 80
SCHEDULE = Schedule(start_K=300.0, end_K=3000.0, steps=1400, every=50)
CHUNK = 20


def seen_molecules(data: Path) -> list[str]:
    """Return the backbone molecules that the training split repeats."""
    backbone = read_groups(data)["backbone"]
    stride = max(1, len(backbone) // SEEN_MOLECULES)
    return backbone[::stride][:SEEN_MOLECULES]


def sample_md(data: Path, workers: int) -> None:
    """Sample GFN2-xTB dynamics of every split."""
    groups = read_groups(data)
    jobs = [(name, groups[name], PLAN) for name in SPLITS]
    jobs.append(("probe_seen", seen_molecules(data), SEEN_PLAN))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for name, molecules, plan in jobs:
            job = partial(run_plan, plan=plan, purpose=name)
            frames, failures = collect(pool.imap(job, molecules), len(molecules))
            write_frames(data / "parts" / f"{name}.md.xyz", frames)
            text = json.dumps(failures, indent=1)
            write_text(data / "parts" / f"{name}.md.json", text)
            print(f"{name}: {len(frames)} frames, {len(failures)} failures", flush=True)


def label(atoms: Atoms, molecule: str, temperature: float) -> Atoms | str:
    """Label one frame with a new calculator, or return the reason of the failure."""
    atoms.calc = xtb()
    try:
        return snapshot(atoms, molecule, temperature, "ramp")
    except FAILURES as error:
        return f"{molecule} at {temperature:.0f} K: {error}"


def ramp_chunk(molecules: list[str]) -> list[tuple[Sampled, str]]:
    """Heat a chunk of molecules and label the frames; return reasons of stops, too."""
    torch.set_num_threads(1)
    forces = batched(load_model())
    ramps = [
        new_ramp(
            s,
            embed(s, seed_of(s, "ramp")),
            seed_of(s, "ramp-momenta"),
            SCHEDULE.start_K,
        )
        for s in molecules
    ]
    run_ramps(forces, ramps, SCHEDULE)
    results = []
    for ramp in ramps:
        sampled = Sampled(ramp.molecule)
        for temperature, positions in ramp.frames:
            atoms = Atoms(ramp.atoms.numbers, positions=positions)
            labelled = label(atoms, ramp.molecule, temperature)
            if isinstance(labelled, str):
                sampled.failures.append(labelled)
            else:
                sampled.frames.append(labelled)
        results.append((sampled, ramp.stopped))
    return results


def chunks(data: Path, limits: dict[str, int]) -> list[tuple[str, list[str]]]:
    """Cut the molecules of all splits into chunks."""
    groups = read_groups(data)
    groups["probe_seen"] = seen_molecules(data)
    jobs = []
    for name in (*SPLITS, "probe_seen"):
        molecules = groups[name][: limits.get(name)]
        parts = range(0, len(molecules), CHUNK)
        jobs += [(name, molecules[i : i + CHUNK]) for i in parts]
    return jobs


def sample_ramps(data: Path, workers: int, limits: dict[str, int]) -> None:
    """Run and label all ramps, then write the three splits."""
    jobs = chunks(data, limits)
    frames: dict[str, list[Atoms]] = {name: [] for name in (*SPLITS, "probe_seen")}
    failures: dict[str, list[str]] = {name: [] for name in frames}
    stops: dict[str, list[str]] = {name: [] for name in frames}
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        results = pool.imap(ramp_chunk, [molecules for _, molecules in jobs])
        for (name, _), chunk in zip(jobs, results, strict=True):
            for sampled, reason in chunk:
                frames[name] += sampled.frames
                failures[name] += sampled.failures
                stops[name].append(reason)
            total = sum(map(len, frames.values()))
            elapsed = time.monotonic() - start
            print(f"{name} {total} frames {elapsed:.0f} s", flush=True)
    merge(data, frames, failures, stops)


def merge(
    data: Path,
    frames: dict[str, list[Atoms]],
    failures: dict[str, list[str]],
    stops: dict[str, list[str]],
) -> None:
    """Join dynamics and ramps of every split and write them with a summary."""
    summary = {}
    for split in SPLITS:
        parts = [split, "probe_seen"] if split == "probe_train" else [split]
        joined: list[Atoms] = []
        lost: list[str] = []
        for name in parts:
            joined += ase.io.read(data / "parts" / f"{name}.md.xyz", ":")
            joined += frames[name]
            text = (data / "parts" / f"{name}.md.json").read_text(encoding="utf-8")
            lost += json.loads(text) + failures[name]
        write_frames(data / f"{split}.xyz", joined)
        reasons = [reason for name in parts for reason in stops[name]]
        summary[split] = {
            "frames": len(joined),
            "molecules": len({a.info["molecule"] for a in joined}),
            "ramp_frames": sum(a.info["kind"] == "ramp" for a in joined),
            "ramps": len(reasons),
            "ramps_stopped_by_force": reasons.count("force"),
            "ramps_stopped_by_distance": reasons.count("distance"),
            "not_converged": len(lost),
            "not_converged_frames": lost,
        }
    write_text(data / "probe_summary.json", json.dumps(summary, indent=1))


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["md", "ramps"])
    parser.add_argument("--data", type=Path, default=Path("bundled_data"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, default=None, help="ramps per split")
    options = parser.parse_args()
    if options.stage == "md":
        sample_md(options.data, options.workers)
    else:
        limits = dict.fromkeys((*SPLITS, "probe_seen"), options.limit)
        sample_ramps(options.data, options.workers, limits)


if __name__ == "__main__":
    main()
