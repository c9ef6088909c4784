"""Test whether Force Delta with a distilled head ranks true force errors.

Other signals are a committee, the latent distance and the largest force.

    python benchmarks/distilled_head.py --cache FOLDER

There are two potentials without direct forces: the bundled MACE on molecules
(reference: GFN2-xTB) and CHGNet on crystals (reference: PBE(+U)). Each head is fitted
on ordinary structures and tested on others. FOLDER keeps the results of slow stages.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from common import print_table, print_targets, target, write_result
from distilled import crystals, organic
from distilled.costs import added_time, titanates, water
from distilled.figures import draw
from distilled.members import spread, train_members, training
from distilled.ranking import SIGNALS, Readings, mean_rank, rows
from distilled.reading import fit_distance, predict, read_signals

from uqcalc import distill, tap
from uqcalc.models.bundled import bare_calculator
from uqcalc.types import Backbone, DistilledHead, Prediction


NAME = "distilled_head"
MACE, CHGNET = "bundled MACE", "CHGNet"
# frames and cutoff in Å of each head; the one with the best held-out R² is used
HEADS = {
    MACE: (("dynamics", 5.0),),
    CHGNET: (("as they are", 5.0), ("rattled", 5.0), ("rattled", 6.0)),
}
SEED = 0
NOTES = (
    "the head is chosen by its held-out R² on frames of the kind of its training; the "
    "true errors are not used for the choice",
    "a head for rattled crystals is tested on rattled crystals, so its R² cannot be "
    "compared with that of the head for unrattled crystals",
    "held-out frames are drawn at random: those of MACE are of the same molecules as "
    "the training frames, those of CHGNet are other crystals",
    "error and U: RMS over the force components of a structure",
    "latent distance: mean Mahalanobis distance of the atoms to the training frames of "
    "the head; one covariance for each element (MACE) or for all (CHGNet)",
    "MACE: the head was fitted on dynamics at 300 to 1000 K of training molecules of "
    "the potential; all blocks are of other molecules; radicals are doublets",
    "committee: the bundled MACE and three members that were trained for minutes on "
    "few frames on a crowded machine (see members): they are far weaker than the "
    "bundled potential, and a committee of equal members would be better",
    "CHGNet: the two MPtrj sets are in its own training pool; structures with elements "
    "that the head has not seen, and those whose forces vanish by symmetry (below "
    "1 meV/Å), are left out of the comparison and counted",
    "95 %: molecules (materials) of each block drawn with repetition, 200 times",
    "minutes: ten and more processes shared two cores, so cpu_minutes say more",
    "heads, members and labels were made one by one in earlier runs with the same "
    "functions; minutes of heads are sums of labelling and fit, rounded",
    "cost: processor time of one thread, both in turns; median of pairs",
)


@dataclass(frozen=True)
class Distilled:
    """A head, its training frames, and its scores."""

    head: DistilledHead
    taught: Sequence[Prediction]
    line: dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A block: predictions, true forces, molecules or materials, further risks."""

    predictions: Sequence[Prediction]
    truth: Sequence[np.ndarray]
    groups: Sequence[str]
    more: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Readings of the signals of one potential on its blocks, and cost of the head."""

    blocks: Mapping[str, Readings]
    groups: Mapping[str, Sequence[str]]
    heads: list[dict[str, Any]]
    cost: list[dict[str, Any]]


def main() -> None:
    """Run the stages that the cache lacks; then rank, print, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cache", type=Path, default=Path("distilled_cache"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mattersim"))
    parser.add_argument("--minutes", type=float, default=5.0, help="for each member")
    given = parser.parse_args()
    for package in ("tblite", "rdkit", "mace", "chgnet"):
        if importlib.util.find_spec(package) is None:
            raise SystemExit(f"needs {package}, which is not installed")
    crystals.require_data(given.data)
    given.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    molecules, members = study_molecules(given.cache, given.minutes)
    studies = {MACE: molecules, CHGNET: study_crystals(given.cache, given.data)}
    report(studies, members)


def study_molecules(cache: Path, minutes: float) -> tuple[Study, list[dict[str, Any]]]:
    """Return the study of the bundled MACE, and the training of the committee."""
    organic.sample(cache)
    folders = train_members(cache, minutes)
    backbone = tap(bare_calculator())
    frames = {"dynamics": organic.teaching_frames(cache)}
    heads = distil_all(cache, MACE, frames, backbone)
    asked = {}
    for name, block in organic.labelled_blocks(cache).items():
        found = predict(backbone, block, cache / f"{MACE} {name}.npz")
        truth = [atoms.arrays[organic.FORCES] for atoms in block]
        own = [p.forces for p in found]
        committee = spread(folders, block, own, cache / f"committee {name}.npz")
        groups = [atoms.info["molecule"] for atoms in block]
        asked[name] = Asked(found, truth, groups, {"committee": committee})
    bare = bare_calculator()
    head = heads[0].head
    cost = partial(added_time, bare, bare_calculator(), head, water())
    return judged(cache, MACE, heads, asked, cost), training(folders)


def study_crystals(cache: Path, data: Path) -> Study:
    """Return the study of CHGNet."""
    backbone = crystals.chgnet()
    plain = crystals.teaching_frames(data)
    frames = {"as they are": plain, "rattled": crystals.rattled(plain)}
    heads = distil_all(cache, CHGNET, frames, backbone)
    asked = {}
    for name, block in crystals.labelled_blocks(data).items():
        found = predict(backbone, block, cache / f"{CHGNET} {name}.npz")
        truth = [atoms.arrays[crystals.FORCES] for atoms in block]
        asked[name] = Asked(found, truth, crystals.materials(block))
    bare = crystals.chgnet().calculator
    head = heads[0].head
    cost = partial(added_time, bare, backbone.calculator, head, titanates())
    return judged(cache, CHGNET, heads, asked, cost)


def distil_all(
    cache: Path, potential: str, sets: Mapping[str, Sequence[Atoms]], backbone: Backbone
) -> list[Distilled]:
    """Return the heads of `HEADS`; those in the cache are not fitted again."""
    heads = []
    for name, cutoff in HEADS[potential]:
        path = cache / f"{potential} {name} {cutoff:g} A.head"
        times = path.with_suffix(".json")
        if not path.is_file():
            start, busy = time.perf_counter(), time.process_time()
            head = distill(sets[name], backbone, cutoff=cutoff, seed=SEED)
            taken = {
                "minutes": (time.perf_counter() - start) / 60,
                "cpu_minutes": (time.process_time() - busy) / 60,
            }
            times.write_text(json.dumps(taken), encoding="utf-8")
            head.save(path)
        head = DistilledHead.load(path)
        line = {"potential": potential, "frames": name, "cutoff_A": cutoff}
        line |= head.card.report | {"fitted": head.card.training["frames"]}
        line |= json.loads(times.read_text(encoding="utf-8"))
        taught = predict(backbone, sets[name], cache / f"{potential} {name}.npz")
        heads.append(Distilled(head, taught, line))
    return heads


def judged(
    cache: Path,
    potential: str,
    heads: Sequence[Distilled],
    asked: Mapping[str, Asked],
    cost: Callable[[], list[dict[str, Any]]],
) -> Study:
    """Read all signals with every head; keep the one with the best held-out R²."""
    best = max(heads, key=lambda one: one.line["r2"])
    kept: Mapping[str, Readings] = {}
    for one in heads:
        distance = fit_distance(one.taught, by_element=potential == MACE)
        blocks = {
            name: read_signals(block.predictions, block.truth, one.head, distance)
            | block.more
            for name, block in asked.items()
        }
        for signal in ("force_delta", "latent distance"):
            one.line[f"mean Spearman, {signal}"] = mean_rank(blocks, signal)
        one.line["used"] = one is best
        kept = blocks if one is best else kept
    path = cache / f"{potential} cost.json"
    if not path.is_file():
        path.write_text(json.dumps(cost()), encoding="utf-8")
    groups = {name: block.groups for name, block in asked.items()}
    lines = [one.line for one in heads]
    return Study(kept, groups, lines, json.loads(path.read_text(encoding="utf-8")))


def report(studies: Mapping[str, Study], members: list[dict[str, Any]]) -> None:
    """Print, write and draw."""
    lines, heads, cost, targets = [], [], [], []
    for potential, study in studies.items():
        lines += rows(potential, study.blocks, study.groups)
        heads += study.heads
        cost += [{"potential": potential, **row} for row in study.cost]
        mean = lines[-1]
        targets += [
            target(
                f"{potential}: mean Spearman of Force Delta minus {other}'s",
                mean["force_delta"] - mean[other],
                0.0,
                at_most=False,
            )
            for other in SIGNALS[1:]
            if other in mean
        ]
    columns = {"potential": "potential", "block": "block", "structures": "n"}
    columns |= {"unseen elements": "unseen", "no force": "no force"}
    columns |= {"median error": "median error"}
    columns |= {"median force_delta": "median U"} | {name: name for name in SIGNALS}
    columns |= {"unseen as worst": "U, unseen as worst"}
    print_table("Spearman with the true RMS force error", lines, columns)
    for title, table in (("heads", heads), ("time a step", cost), ("members", members)):
        print_table(title, table, {key: key for key in table[0]})
    print_targets(targets)
    path = write_result(
        NAME,
        seeds=[SEED, organic.SEED, crystals.SEED],
        rows=lines,
        targets=targets,
        notes=NOTES,
        more={"heads": heads, "cost": cost, "members": members},
    )
    draw({name: study.blocks for name, study in studies.items()}, lines)
    print(path.name)


if __name__ == "__main__":
    main()
