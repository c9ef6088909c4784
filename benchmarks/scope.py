"""Measure which structures the scope of a probe excludes, and which ones by mistake.

    python benchmarks/scope.py --model chgnet --before old.probe --cache features
    python benchmarks/scope.py --model sevennet --before old.probe  # with sevenn
    python benchmarks/scope.py --model default --molecules probe_train.xyz

``--before`` is a probe of the forces from an earlier version, such as the output of
``git show 4ed97ad:uqcalc/data/chgnet.probe``; ``--probe`` is by default the shipped
one.

Three questions. (1) How many absurd crystals (`roughness.absurd`) are RELIABLE with the
probe before and with ``--probe``, at a constant cell (verdict on forces) and for a
moving cell (verdict on forces and stress, if there is a probe of the stress)? (2) On
eleven systems with labels of DFT that are in no fit: if |mean P - share of right
frames| of a system exceeds 0.3, are most of its frames outside? Do right frames that
were RELIABLE stay so? (3) With ``--model default``: how much does the share of the same
frames that are outside depend on the split, with about 39 groups?
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from common import print_table, print_targets, target, write_result
from new_systems import crystals, thinned
from roughness.absurd import draw

import uqcalc
from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.defaults import open_probes
from uqcalc.errors import UqcalcError
from uqcalc.evaluation.readings import read_structures
from uqcalc.fitting.crossfit import group_folds
from uqcalc.fitting.leftout import Away, left_out_distances
from uqcalc.labels.dataset import Dataset, build_dataset
from uqcalc.probe.inputs import SHRINKAGE, Moments
from uqcalc.probe.scope import held_out_limit, learn_scope
from uqcalc.statistics.mahalanobis import squared_distances, whitening
from uqcalc.uses import judged_for


sys.path.insert(0, str(Path(__file__).parents[1] / "provenance" / "universal"))
from mattersim import OPENERS, load_frames


WIDE, MOSTLY, FEWEST = 0.3, 0.5, 20
SEEN = (
    "Li", "zeolite dft", "zeolite edi", "zeolite jbw", "zeolite pty", "SiO2 crystal",
    "acetylacetone 300K",
)  # fmt: skip
SPLITS, GROUPS, OTHERS, MARKED = 5, 46, 100, 500
ABSURD_COLUMNS = {
    "kind": "kind",
    "structures": "structures",
    "confident": "P at least 0.8",
    "reliable_before": "RELIABLE before",
    "reliable": "RELIABLE now",
    "reliable_moving": "RELIABLE now, moving cell",
    "outside": "outside now",
}
SYSTEM_COLUMNS = {
    "system": "system",
    "frames": "frames",
    "right": "right",
    "mean_p": "mean P",
    "gap": "gap",
    "outside_before": "outside before",
    "outside": "outside now",
    "right_reliable_before": "right and RELIABLE before",
    "right_reliable": "now",
    "wrong_reliable_before": "wrong and RELIABLE before",
    "wrong_reliable": "now",
}


class Judge:
    """The calculator's verdicts with given probes, on predictions that exist already.

    Attributes
    ----------
    card : Card
        That of the probe of the forces.
    """

    def __init__(self, backbone: Backbone, probes: Sequence[uqcalc.Probe]) -> None:
        self.calculator = uqcalc.ReliableCalculator(backbone, probes)
        self.card = probes[0].card

    def __call__(self, prediction: Prediction) -> tuple[bool, bool, float, float]:
        """Return whether it is RELIABLE, also for a moving cell, P and the novelty."""
        calc = self.calculator
        found = calc.judge(prediction)
        moving = judged_for(found, "moving_cell", calc.policy, calc.signals)
        results = found.readings[0].results
        return (
            found.level is uqcalc.Level.RELIABLE,
            moving.level is uqcalc.Level.RELIABLE,
            results["probe_reliability"],
            results["probe_novelty"],
        )


def judged(judges: Sequence[Judge], predictions: Sequence[Prediction]) -> np.ndarray:
    """Return (structures, judges, 4): RELIABLE, for a moving cell, P, novelty."""
    return np.array([[judge(p) for judge in judges] for p in predictions], float)


def absurd(
    backbone: Backbone,
    judges: Sequence[Judge],
    frames: list[Atoms],
    count: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return counts by kind."""
    found: dict[str, list[np.ndarray]] = {}
    for kind, atoms in draw(frames, count, seed):
        mine = found.setdefault(kind, [])
        with contextlib.suppress(UqcalcError):  # refused by the model: not RELIABLE
            wanted = ["energy", "forces", "stress"]
            mine.append(judged(judges, [backbone(atoms, wanted)])[0])
    rows = []
    for kind, mine in found.items():
        (before, *_), (now, moving, p, novelty) = np.stack(mine).transpose(1, 2, 0)
        rows.append(
            {
                "kind": kind,
                "structures": len(mine),
                "confident": int(np.sum(p >= judges[1].card.suspect)),
                "reliable_before": int(before.sum()),
                "reliable": int(now.sum()),
                "reliable_moving": int(moving.sum()),
                "outside": int(np.sum(~(novelty <= 1))),
            }
        )
    return rows


def system_row(
    name: str, data: Dataset, judges: Sequence[Judge], boundary: float
) -> dict[str, Any]:
    found = judged(judges, data.predictions).transpose(1, 2, 0)
    (before, _, _, old), (now, _, p, novelty) = found
    right = data.errors <= boundary
    return {
        "system": name,
        "looked_at": name in SEEN,
        "frames": len(data),
        "right": float(right.mean()),
        "mean_p": float(p.mean()),
        "gap": float(abs(p.mean() - right.mean())),
        "outside_before": float(np.mean(~(old <= 1))),
        "outside": float(np.mean(~(novelty <= 1))),
        "median_novelty": float(np.median(novelty)),
        "right_reliable_before": int(np.sum(right * before)),
        "right_reliable": int(np.sum(right * before * now)),
        "wrong_reliable_before": int(np.sum(~right * before)),
        "wrong_reliable": int(np.sum(~right * now)),
    }


def of_crystals(options: argparse.Namespace) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        backbone = uqcalc.tap(OPENERS[options.model]())
    before, probes = uqcalc.Probe.load(options.before), open_probes(options.probe)
    judges = [Judge(backbone, [before]), Judge(backbone, probes)]
    frames = load_frames(options.data / "mattersim", 40)
    frames = [a for a in frames if not a.info["set"].startswith("random")]
    rows = absurd(backbone, judges, frames, options.count, options.seed)
    print_table("absurd crystals", rows, ABSURD_COLUMNS)
    labels = uqcalc.Labels("forces", group_key="run")
    systems = []
    for name, own in crystals(options.data, options.frames):
        if options.looked_at and name not in SEEN:
            continue
        folder = None
        if options.cache is not None:
            options.cache.mkdir(parents=True, exist_ok=True)
            folder = options.cache / f"{options.model} {name}".replace(" ", "_")
        exclude = ("duplicate", "not finite", "not computable", "unknown elements")
        data = build_dataset(own, backbone, labels, exclude=exclude, cache=folder)
        systems.append(system_row(name, data, judges, judges[1].card.boundary))
        print(systems[-1], flush=True)
    print_table("new systems", systems, SYSTEM_COLUMNS)
    total = sum(row["structures"] for row in rows)
    wide = [r for r in systems if r["gap"] > WIDE and r["frames"] >= FEWEST]
    kept = sum(r["right_reliable"] for r in systems)
    were = sum(r["right_reliable_before"] for r in systems)
    targets = [
        target(
            "share of absurd structures that are RELIABLE",
            sum(row["reliable"] for row in rows) / total,
            0.01,
        ),
        target(
            "the same for a moving cell",
            sum(row["reliable_moving"] for row in rows) / total,
            0.01,
        ),
        target(
            f"share of systems with a gap above {WIDE} that are mostly outside",
            np.mean([r["outside"] > MOSTLY for r in wide]) if wide else np.nan,
            0.5,
            at_most=False,
        ),
        target(
            "right and RELIABLE frames of new systems that stay so",
            kept / were if were else np.nan,
            0.9,
            at_most=False,
        ),
    ]
    print_targets(targets)
    write_result(
        options.name or f"scope_{options.model}",
        seeds=[options.seed],
        rows=[{"part": "absurd", **row} for row in rows]
        + [{"part": "system", **row} for row in systems],
        targets=targets,
        notes=[
            "before and now: same predictions, whole verdict (probe with its scope "
            "and atom floor, sanity, flags); the probe before is of the forces only",
            f"now: {'; '.join(probe.card.question for probe in probes)}",
            f"systems looked at while the scope was built: {', '.join(SEEN)}",
        ],
    )


def distances(fit: Dataset, test: Dataset) -> Away:
    """Return the distances of ``test`` from ``fit``."""
    moments = Moments(fit.predictions)
    inverse = whitening(moments.within, SHRINKAGE)
    found = []
    for p in test.predictions:
        standard = (p.features.double() - moments.mean) / moments.scale
        away = standard - moments.element_mean[torch.from_numpy(p.numbers)]
        squares = squared_distances(away, inverse)
        found.append((float(squares.max()), float((squares + 1e-6).log().mean())))
    elements = np.array([len(np.unique(z)) for z in test.numbers], float)
    return Away(*np.array(found).T, elements)


def share_outside(
    fit: Dataset, test: Dataset, probe: uqcalc.Probe, seed: int
) -> dict[str, Any]:
    """Learn the limits of ``fit``; return the shares of ``test`` that are outside.

    P of the shipped probe says which structures are well judged. The limit before is
    the conformal quantile of the largest distance, from three folds.
    """
    seen = read_structures(probe, fit.predictions)
    right = fit.errors <= probe.card.boundary
    judged = right & (seen.probability >= probe.card.suspect)
    sizes = fit.sizes.tolist()
    scope = learn_scope(
        "forces", left_out_distances(fit, seed), sizes, fit.groups, [], judged
    )
    away = distances(fit, test)
    novelty = scope.novelty(*map(torch.from_numpy, away)).numpy()
    fold, of_folds = group_folds(fit.groups, 3, seed), np.empty(len(fit))
    for k in range(3):
        rest = fit.subset(np.flatnonzero(fold != k))
        rows = np.flatnonzero(fold == k)
        of_folds[rows] = distances(rest, fit.subset(rows)).largest
    before, _ = held_out_limit(of_folds, fit.groups)
    return {
        "split": seed,
        "groups": len(set(fit.groups)),
        "well_judged": int(judged.sum()),
        "limit_before": before,
        "limit": scope.distance,
        "mean_limits": list(scope.mean_limits or ()),
        "mean_slope": scope.mean_slope,
        "outside_before": float(np.mean(away.largest > before)),
        "outside": float(np.mean(~(novelty <= 1))),
    }


def of_molecules(options: argparse.Namespace) -> None:
    calculator = uqcalc.default_calculator()
    backbone, probe = calculator.backbone, calculator.signals[0].probe
    groups: dict[str, list[Atoms]] = {}
    for atoms in read(options.molecules, ":"):
        groups.setdefault(str(atoms.info["molecule"]), []).append(atoms)
    names = np.random.default_rng(options.seed).permutation(sorted(groups))
    labels = uqcalc.Labels("forces", group_key="molecule")

    def built(chosen: np.ndarray, most: int, name: str) -> Dataset:
        frames = [a for key in chosen for a in thinned(groups[key], most)]
        folder = None if options.cache is None else options.cache / name
        exclude = ("duplicate", "not finite", "not computable")
        return build_dataset(frames, backbone, labels, exclude=exclude, cache=folder)

    whole = built(names[:GROUPS], options.frames, f"fit_{options.seed}")
    others = built(names[GROUPS : GROUPS + OTHERS], 5, f"others_{options.seed}")
    order = np.random.default_rng(0).permutation(len(others))[:MARKED]
    test = others.subset(np.sort(order))
    rows = []
    for seed in range(SPLITS):
        fit, _ = whole.split((0.85, 0.15), seed)
        fit = fit.subset(np.flatnonzero(~fit.exploded()))
        rows.append(share_outside(fit, test, probe, seed))
        print(rows[-1], flush=True)
    shares = [row["outside"] for row in rows]
    targets = [
        target(
            f"spread over {SPLITS} splits of the share outside, about 39 groups",
            np.ptp(shares),
            0.1,
        )
    ]
    print_targets(targets)
    write_result(
        "scope_splits",
        seeds=list(range(SPLITS)),
        rows=rows,
        targets=targets,
        notes=[
            f"the same {len(test)} frames of other molecules; the limits are learned "
            "without a fit: P of the shipped probe says which labels are well judged",
            "before: the conformal quantile of the largest distance, from three folds",
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=(*OPENERS, "default"), required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--probe", action="append", help="by default all that ship")
    parser.add_argument("--before", type=Path, help="earlier probe of the forces")
    parser.add_argument("--molecules", type=Path, help="labelled frames of molecules")
    parser.add_argument("--cache", type=Path, help="folder that keeps the features")
    parser.add_argument("--count", type=int, default=40, help="absurd ones of a kind")
    parser.add_argument("--frames", type=int, default=25, help="of a system")
    parser.add_argument("--looked-at", action="store_true", help="only these systems")
    parser.add_argument("--name", help="of the result, for --probe")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore", uqcalc.LabelWarning)
    if options.model == "default":
        if options.molecules is None or not options.molecules.is_file():
            parser.exit(2, "--molecules must name a file of labelled frames\n")
        of_molecules(options)
        return
    if options.before is None or not options.data.is_dir():
        parser.exit(2, "--before must name a probe, and --data a folder of labels\n")
    options.probe = options.probe or [options.model]
    of_crystals(options)


if __name__ == "__main__":
    main()
