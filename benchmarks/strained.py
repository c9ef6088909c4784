"""Measure how the stress improves verdicts on forces of strongly strained crystals.

    python benchmarks/strained.py --model chgnet
    python benchmarks/strained.py --model sevennet --most 700  # with sevenn

A probe of the stress makes a verdict on forces at least SUSPECT if the pressure exceeds
ten times its boundary and its P is below the cutoff for UNRELIABLE (`ProbeSignal`).
(1) Of labelled crystals whose formulas are not in the fit of the probes (guarantee and
test of `provenance/universal`), how many RELIABLE ones become SUSPECT, and how many of
these are wrong? (2) How many absurd crystals (`roughness.absurd`) are RELIABLE before
and after?
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from common import print_table, print_targets, target, write_result
from roughness.absurd import draw

import uqcalc
from uqcalc.defaults import open_probes
from uqcalc.errors import UqcalcError
from uqcalc.labels.groups import reduced_formula
from uqcalc.types import Backbone


sys.path.insert(0, str(Path(__file__).parents[1] / "provenance" / "universal"))
from mattersim import OPENERS, open_source


UNSEEN = 0.6  # the share of formulas, in the order of `divide`, that are in the fit
VANISHING = 1e-6  # eV/Å: forces that vanish by symmetry
COLUMNS = {
    "of": "crystals",
    "structures": "structures",
    "reliable_before": "RELIABLE before",
    "wrong_before": "of them wrong",
    "suspect": "now SUSPECT",
    "suspect_wrong": "of them wrong",
}


class Seen(NamedTuple):
    """Whether a structure was RELIABLE before, whether it is now, and its forces."""

    before: bool
    now: bool
    forces: np.ndarray


def reader(backbone: Backbone, model: str) -> Callable[[Atoms], Seen | None]:
    """Return a function that judges a structure; None if the potential refuses it."""
    calculator = uqcalc.ReliableCalculator(backbone, open_probes([model]))

    def read(atoms: Atoms) -> Seen | None:
        try:
            prediction = backbone(atoms, ["energy", "forces", "stress"])
        except UqcalcError:
            return None
        found = calculator.judge(prediction)
        without = [replace(reading, concern=None) for reading in found.readings]
        before = calculator.policy(without).level
        reliable = uqcalc.Level.RELIABLE
        return Seen(before is reliable, found.level is reliable, prediction.forces)

    return read


def unseen(frames: list[Atoms], groups: list[str], most: int | None) -> Iterator[Atoms]:
    """Yield labelled crystals of unseen formulas in random order, at most ``most``."""
    names = np.random.default_rng(0).permutation(sorted(set(groups)))
    kept = {*names[int(UNSEEN * len(names)) :]}
    own = [a for a in frames if reduced_formula(a) in kept]
    for row in np.random.default_rng(1).permutation(len(own))[:most]:
        if np.abs(own[row].get_forces()).max() > VANISHING:
            yield own[row]


def counts(of: str, seen: list[Seen], wrong: np.ndarray | None) -> dict[str, Any]:
    """Return one row; ``wrong`` (structures,) is None without labels."""
    before = np.array([one.before for one in seen])
    suspect = before & ~np.array([one.now for one in seen])
    row = {
        "of": of,
        "structures": len(seen),
        "reliable_before": int(before.sum()),
        "suspect": int(suspect.sum()),
    }
    if wrong is None:
        return row
    return row | {
        "wrong_before": int((before & wrong).sum()),
        "suspect_wrong": int((suspect & wrong).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=sorted(OPENERS), required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--most", type=int, help="labelled crystals; by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--count", type=int, default=40, help="absurd ones of a kind")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.exit(2, f"labels must be in a folder, got {options.data}: see --data\n")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    stored = options.data / "sevennet0_mattersim"
    with contextlib.redirect_stdout(io.StringIO()):
        source = open_source(
            options.model, options.data / "mattersim", stored, None, 40
        )
    read = reader(source.backbone, options.model)
    boundary = open_probes([options.model])[0].card.boundary
    seen, wrong = [], []
    for atoms in unseen(source.frames, source.groups, options.most):
        if (found := read(atoms)) is not None:
            error = np.sqrt(np.mean((found.forces - atoms.get_forces()) ** 2))
            seen.append(found)
            wrong.append(bool(error > boundary))
    rows = [counts("of unseen formulas, labelled", seen, np.array(wrong))]
    ordinary = [a for a in source.frames if not a.info["set"].startswith("random")]
    for seed in options.seeds:
        drawn = (read(a) for _, a in draw(ordinary, options.count, seed))
        absurd = [one for one in drawn if one is not None]
        rows.append(counts(f"absurd, seed {seed}", absurd, None))
        print(rows[-1], flush=True)
    first, others = rows[0], rows[1:]
    right = first["reliable_before"] - first["wrong_before"]
    lost = first["suspect"] - first["suspect_wrong"]
    left = sum(row["reliable_before"] - row["suspect"] for row in others)
    targets = [
        target(
            "share of right and RELIABLE labelled crystals that stay so",
            1 - lost / right,
            0.9,
            at_most=False,
        ),
        target(
            "share of absurd crystals that are RELIABLE",
            left / sum(row["structures"] for row in others),
            0.01,
        ),
    ]
    print_table("strained crystals", rows, COLUMNS)
    print_targets(targets)
    write_result(
        f"strained_{options.model}", seeds=options.seeds, rows=rows, targets=targets
    )


if __name__ == "__main__":
    main()
