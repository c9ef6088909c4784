"""Test the halting of the workflow that users have, on one molecule at a time.

360 GFN2-xTB frames at 300 K train a small MACE, and 200 more fit a probe (boundary 100
meV/Å); a second probe has 100 labels at 600 K, too. Runs at 300 K, at 600 K and from
300 to 1500 K follow, with the true error of every frame. The stages are `make` (frames,
potential, runs, reference forces), `judge` (probes and verdicts) and `report`; each
continues from the files in the cache. Needs rdkit and the extras mace and xtb.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from workflow.dynamics import kinds_of, label, read_runs, simulate, write_runs
from workflow.potential import MOLECULES, SETS, Molecule, batched, sample, train


def make(molecule: Molecule, folder: Path, until: str) -> None:
    """Make frames, potential, runs and their labels, unless they exist."""
    folder.mkdir(parents=True, exist_ok=True)
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
        kinds = kinds_of(molecule)
        write_runs(bare, simulate(batched(folder), frames["potential"][::17], kinds))
        tell("runs")
    if until == "runs":
        return
    runs = read_runs(bare)
    for run in runs:
        label(run)
    write_runs(labelled, runs)
    bare.unlink()
    tell("reference forces")


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
    for name in options.molecules:
        folder = options.cache / name.replace(" ", "_")
        if options.stage == "make":
            make(MOLECULES[name], folder, options.until)


if __name__ == "__main__":
    main()
