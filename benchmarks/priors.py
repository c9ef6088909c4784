"""Labels of one system: adapt a shipped probe, add them to it, or fit a fresh one.

For each system, whole runs are left out, about a quarter of the frames, and n of the
other frames are labels. They

- adapt the probe (`uqcalc.adapt`),
- refit Platt's sigmoid,
- are added to the probe (`uqcalc.fit`, ``prior=``),
- train a fresh probe (the default recipe; median error of the n labels as boundary).

Scores on the frames of the left-out runs: log loss, |mean P - share of right frames|,
AUROC. They are taken at the boundary of the shipped probe and at the median error of
the system, where half of the frames are right. A probability at the median error comes
from the same fit; Platt's sigmoid is refitted there. Means over draws, then over
systems; intervals of differences are a bootstrap over systems.

    python benchmarks/priors.py --model chgnet --cache features
    python benchmarks/priors.py --model default --molecules new_molecules.xyz
"""

from __future__ import annotations

import argparse
import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import target, write_result
from new_systems import bootstrap, crystals, dataset, molecules, scores
from numpy.typing import NDArray

import uqcalc
from uqcalc.backbones.base import Backbone
from uqcalc.defaults import shipped_probe
from uqcalc.errors import LabelError
from uqcalc.fitting.adapt import structure_calibration
from uqcalc.fitting.prior import add_labels
from uqcalc.fitting.training import fit_joined
from uqcalc.labels.dataset import Dataset
from uqcalc.probe.calibration import Calibration, platt
from uqcalc.statistics.scores import auroc


Array = NDArray[np.float64]
COUNTS = (50, 100, 200)
KINDS = ("before", "adapted", "platt", "prior", "fresh")
HELD = 1 / 4  # share of the frames in left-out runs
MOST = 350  # frames of a system


def divided(groups: list[str], count: int, seed: int) -> tuple[Any, Any] | None:
    """Return rows of ``count`` labels and of the left-out runs; None if too few."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(sorted(set(groups)))
    which = np.asarray(groups)
    held: list[str] = []
    while np.isin(which, held).sum() < HELD * len(which):
        held.append(names[len(held)])
    test = np.flatnonzero(np.isin(which, held))
    rest = rng.permutation(np.flatnonzero(~np.isin(which, held)))
    return (rest[:count], test) if len(rest) >= count and len(names) > 3 else None


def covered(calibration: Calibration, boundary: float) -> float:
    """Return the boundary, or the nearest one that the calibration covers."""
    known = calibration.boundaries
    return float(np.clip(boundary, known[0], known[-1]))


def probabilities(probe: uqcalc.Probe, data: Dataset, boundary: float) -> Array:
    """Return P(error <= boundary) of each structure."""
    boundary = covered(probe.card.calibration, boundary)
    parts = [probe.read([p], boundary=boundary).reliability for p in data.predictions]
    found: Array = torch.cat(parts).double().numpy()
    return found


def log_odds(probability: Array) -> Array:
    """Return the log-odds of probabilities of single precision."""
    inside = np.clip(probability, 1e-7, 1 - 1e-7)
    return np.asarray(np.log(inside) - np.log1p(-inside))


def draw(
    probe: uqcalc.Probe,
    data: Dataset,
    fit: NDArray[np.int64],
    held: NDArray[np.int64],
    fresh: Backbone | None,
) -> dict[str, float]:
    """Return the scores of one draw of labels on the left-out runs.

    With the potential ``fresh`` a fresh probe is fitted, too.
    """
    card, some, test = probe.card, data.subset(fit), data.subset(held)
    score = torch.cat([probe.scores([p]) for p in data.predictions]).double()
    adapted = structure_calibration(probe, some)
    probes = {"prior": add_labels(probe, some)}
    if fresh is not None:
        with contextlib.suppress(LabelError):  # no skill on left-out groups
            probes["fresh"] = fit_fresh(some, fresh)
    found = {}
    middle = covered(card.calibration, float(np.median(data.errors)))
    for place, boundary in (("", card.boundary), ("_median", middle)):
        right = data.errors <= boundary
        plain = card.calibration.logits(score, boundary).numpy()
        given = {
            "before": plain[held],
            "adapted": adapted.logits(score, boundary).numpy()[held],
            "platt": plain[held],
        }
        with contextlib.suppress(LabelError):  # labels of one kind
            slope, level = platt(plain[fit], right[fit])
            given["platt"] = slope * plain[held] + level
        for name, one in probes.items():
            given[name] = log_odds(probabilities(one, test, boundary))
        for name, logits in given.items():
            loss, gap, _ = scores(logits, right[held])
            found[f"log_loss_{name}{place}"] = loss
            found[f"gap_{name}{place}"] = gap
            if place and 0 < right[held].sum() < len(held):
                found[f"auroc_{name}"] = auroc(right[held], logits)
    return found


def fit_fresh(data: Dataset, backbone: Backbone) -> uqcalc.Probe:
    """Return a probe that is fitted to these labels only."""
    boundary = float(np.median(data.errors))
    labels = data.labels or uqcalc.Labels()
    return fit_joined(data, backbone, labels, uqcalc.Recipe(), boundary)[0]


def curves(
    probe: uqcalc.Probe, data: Dataset, backbone: Backbone, draws: int, fresh: int
) -> list[dict[str, Any]]:
    """Return the scores of one system for every number of labels."""
    rows = []
    for count in COUNTS:
        found = []
        for seed in range(draws):
            parts = divided(data.groups, count, seed)
            if parts is not None:
                new = backbone if seed < fresh else None
                found.append(draw(probe, data, *parts, new))
        if not found:
            continue
        keys = {key for one in found for key in one}
        means = {
            key: float(np.mean([one[key] for one in found if key in one]))
            for key in sorted(keys)
        }
        rows.append({"labels": count, "draws": len(found)} | means)
        print({k: round(v, 3) for k, v in rows[-1].items()}, flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over systems, and intervals of the difference to ``adapted``."""
    found = []
    for count in COUNTS:
        some = [row for row in rows if row["labels"] == count]
        if not some:
            continue
        entry: dict[str, Any] = {"labels": count, "systems": len(some)}
        for kind in ("log_loss_{}", "gap_{}", "log_loss_{}_median", "gap_{}_median"):
            entry |= compared(some, kind)
        entry |= compared(some, "auroc_{}")
        found.append(entry)
    return found


def compared(rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Return the mean of one score for each method, over the systems that have it."""
    entry: dict[str, Any] = {}
    for name in KINDS:
        key, beside = kind.format(name), kind.format("adapted")
        both = [(r[key], r[beside]) for r in rows if key in r and beside in r]
        if not both:
            continue
        values, others = np.transpose(both)
        entry[key] = float(values.mean())
        if name in {"prior", "fresh", "platt"}:
            entry[f"{key}_less_adapted"] = bootstrap(values - others)
            entry[f"{key}_systems"] = len(values)
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("chgnet", "default"), required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--molecules", type=Path, help="labelled frames of molecules")
    parser.add_argument("--cache", type=Path, help="folder that keeps the features")
    parser.add_argument("--most", type=int, default=MOST, help="frames of a system")
    parser.add_argument("--only", nargs="+", help="texts in the names of the systems")
    parser.add_argument("--name", default="", help="added to the name of the result")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--fresh", type=int, default=1, help="draws with a fresh fit")
    options = parser.parse_args()
    if options.model == "default":
        if options.molecules is None or not options.molecules.is_file():
            parser.exit(2, "--molecules must name a file of labelled frames\n")
        systems = molecules(options.molecules, options.most)
    elif options.data.is_dir():
        systems = crystals(options.data, options.most)
    else:
        parser.exit(2, f"systems must be in a folder, got {options.data}: see --data\n")
    warnings.simplefilter("ignore", uqcalc.LabelWarning)
    with contextlib.redirect_stdout(io.StringIO()):
        backbone = uqcalc.tap(uqcalc.open_model(options.model, device="cpu"))
    probe = shipped_probe(options.model)
    if probe is None:
        parser.exit(2, f"no probe ships for {options.model}\n")
    rows = []
    for name, frames in systems:
        if options.only and not any(text in name for text in options.only):
            continue
        data = dataset(frames, backbone, options.cache, name)
        print(name, len(data), "frames,", len(set(data.groups)), "runs", flush=True)
        found = curves(probe, data, backbone, options.draws, options.fresh)
        rows += [{"system": name, "frames": len(data)} | row for row in found]
    report(options.model + options.name, options.draws, rows)


def report(model: str, draws: int, rows: list[dict[str, Any]]) -> None:
    """Print the means and write the result."""
    means = summary(rows)
    for row in means:
        print({k: np.round(v, 3).tolist() for k, v in row.items()})
    write_result(
        f"priors_{model}",
        seeds=list(range(draws)),
        rows=[{"kind": "mean", "model": model, **row} for row in means]
        + [{"kind": "curve", **row} for row in rows],
        targets=[
            target(
                f"log loss with {row['labels']} labels added, over that of adapt",
                row["log_loss_prior"] / row["log_loss_adapted"],
                1.0,
                at_most=True,
            )
            for row in means
        ],
        notes=[
            "whole runs are left out; n of the other frames are labels",
            "_median: at the median error of the system",
            "the gap is |mean P - share of right frames|",
        ],
    )


if __name__ == "__main__":
    main()
