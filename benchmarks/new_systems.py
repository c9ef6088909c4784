"""Test a shipped probe on new systems, before and after a few labels.

For each system, n frames adapt the probe (`uqcalc.adapt`) and the others test it. The
same is done with the probe as it is, and with Platt's sigmoid refitted to the right and
wrong labels of the n frames. "Known" shifts the log-odds so that mean P is the share of
right frames among *all* frames of the system: its score is the noise of a finite test.
Scores: log loss and |mean P - share of right frames|, averaged over draws of the n
frames, then over systems. A system is worse if its log loss grew in a one-sided t test
over its runs, after Holm's correction over systems (5 %).

    python benchmarks/new_systems.py --model chgnet --cache features
    python benchmarks/new_systems.py --model default --molecules new_molecules.xyz

Systems of CHGNet: Li and Mo (mlearn), five zeolites, SiO2 as a crystal and as a melt,
and acetylacetone at 300 and 600 K, from ``../shared/data``. Systems of the bundled
potential: the molecules of benchmarks/new_molecules.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from common import target, write_result
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import ttest_1samp

import uqcalc
from uqcalc.backbones.base import Backbone
from uqcalc.defaults import shipped_probe
from uqcalc.errors import LabelError
from uqcalc.fitting.adapt import structure_calibration
from uqcalc.labels.dataset import Dataset, build_dataset
from uqcalc.probe.calibration import platt


COUNTS = (10, 25, 50, 100)
DRAWS = 5
FEWEST_TESTED = 10
MOST = 200  # frames of a system
EXCLUDE = ("duplicate", "not finite", "not computable", "unknown elements")


def thinned(frames: list[Atoms], most: int) -> list[Atoms]:
    """Return at most ``most`` random frames, in order."""
    rows = np.random.default_rng(0).permutation(len(frames))[:most]
    return [frames[i] for i in np.sort(rows)]


def crystals(folder: Path, most: int) -> Iterator[tuple[str, list[Atoms]]]:
    """Yield the systems with labels of DFT, as name and frames."""
    metals = read(folder / "mlearn_li_mo/li_mo.xyz", ":")
    for element in ("Li", "Mo"):
        own = [atoms for atoms in metals if atoms.info["element"] == element]
        yield element, thinned(own, most)
    for path in sorted((folder / "si_zeo22").glob("*.npz")):
        yield f"zeolite {path.stem}", zeolite(path, most)
    silica = read(folder / "sio2/sio2.xyz", ":")
    for kind in ("crystal", "melt_quench"):
        own = [atoms for atoms in silica if atoms.info["config_type"] == kind]
        for row, atoms in enumerate(own):
            atoms.info["run"] = f"{kind} {row // 25}"
        yield f"SiO2 {kind}", thinned(own, most)
    for name in ("300K", "600K"):
        own = read(folder / f"acac/test_MD_{name}.xyz", ":")
        for row, atoms in enumerate(own):
            atoms.arrays["REF_forces"] = atoms.get_forces()
            atoms.calc = None
            atoms.info["run"] = f"{name} {row // 50}"
        yield f"acetylacetone {name}", thinned(own, most)


def zeolite(path: Path, most: int) -> list[Atoms]:
    data = np.load(path)
    rows = np.random.default_rng(0).permutation(len(data["energies"]))[:most]
    frames = []
    for row in np.sort(rows):
        symbols = data["symbols"]
        own = symbols[row] if symbols.ndim == 2 else symbols
        atoms = Atoms(
            [str(s) for s in own],
            positions=data["positions"][row],
            cell=data["cells"][row],
            pbc=True,
        )
        atoms.arrays["REF_forces"] = data["forces"][row]
        atoms.info["run"] = f"block {row // 150}"
        frames.append(atoms)
    return frames


def molecules(path: Path, most: int) -> Iterator[tuple[str, list[Atoms]]]:
    """Yield the molecules of a file of labelled frames."""
    groups: dict[str, list[Atoms]] = {}
    for atoms in read(path, ":"):
        kind = f"{atoms.info.get('kind')} {atoms.info.get('temperature')}"
        atoms.info.setdefault("run", kind)
        groups.setdefault(str(atoms.info["molecule"]), []).append(atoms)
    for name, frames in groups.items():
        if len(frames) >= COUNTS[0] + FEWEST_TESTED:
            yield name, thinned(frames, most)


def losses(
    logits: NDArray[np.float64], right: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the log loss of each frame."""
    found: NDArray[np.float64] = np.logaddexp(0.0, np.where(right, -logits, logits))
    return found


def scores(
    logits: NDArray[np.float64], right: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Return log loss, |mean P - share of right frames|, and mean P."""
    loss = losses(logits, right).mean()
    mean = float((1 / (1 + np.exp(-logits))).mean())
    return float(loss), abs(mean - float(right.mean())), mean


def curves(probe: uqcalc.Probe, data: Dataset) -> list[dict[str, Any]]:
    """Return the scores of one system for every number of labels."""
    card = probe.card
    score = torch.cat([probe.scores([p]) for p in data.predictions]).double()
    logits = card.calibration.logits(score)
    right = data.errors <= card.boundary
    rows = []
    for count in COUNTS:
        if len(data) < count + FEWEST_TESTED:
            continue
        draws = [draw(probe, data, logits, right, count, k) for k in range(DRAWS)]
        means = {key: float(np.mean([d[0][key] for d in draws])) for key in draws[0][0]}
        worse = np.concatenate([more for _, more, _ in draws])
        runs = np.concatenate([names for _, _, names in draws])
        rows.append({"labels": count, "p_worse": p_worse(worse, runs)} | means)
    return rows


def p_worse(more: NDArray[np.float64], runs: NDArray[Any]) -> float:
    """Return p of a one-sided t test over runs: the mean of ``more`` is above 0.

    With fewer than four runs the frames count as independent.
    """
    names = np.unique(runs)
    means = [more[runs == name].mean() for name in names] if len(names) > 3 else more
    if np.ptp(means) == 0.0:
        return 1.0
    return float(ttest_1samp(means, 0.0, alternative="greater").pvalue)


def holm(p: NDArray[np.float64], level: float = 0.05) -> NDArray[np.bool_]:
    """Return the hypotheses that Holm's step-down test rejects (1979)."""
    order = np.argsort(p)
    small = p[order] * np.arange(len(p), 0, -1) <= level
    rejected = np.zeros(len(p), dtype=bool)
    rejected[order] = np.logical_and.accumulate(small)
    return rejected


def shifted(
    logits: NDArray[np.float64], right: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return log-odds with a constant added: mean P is the share of right frames."""
    share = np.clip(right.mean(), 0.5 / len(right), 1 - 0.5 / len(right))
    excess = lambda by: expit(logits + by).mean() - share  # noqa: E731
    found: NDArray[np.float64] = logits + brentq(excess, -60.0, 60.0)
    return found


def draw(
    probe: uqcalc.Probe,
    data: Dataset,
    logits: torch.Tensor,
    right: NDArray[np.bool_],
    count: int,
    seed: int,
) -> tuple[dict[str, float], NDArray[np.float64], NDArray[Any]]:
    """Adapt to ``count`` frames and test on the others.

    Returns the scores, and the growth of log loss and the run of each tested frame.
    """
    order = np.random.default_rng(seed).permutation(len(data))
    fit, rest = order[:count], order[count:]
    adapted = structure_calibration(probe, data.subset(fit))
    plain = logits.numpy()
    given = {"before": plain[rest], "adapted": adapted.adapted(logits[rest]).numpy()}
    try:
        slope, level = platt(plain[fit], right[fit])
        given["platt"] = slope * plain[rest] + level
    except LabelError:  # labels of one kind: Platt's sigmoid cannot be fitted
        given["platt"] = plain[rest]
    given["known"] = shifted(plain, right)[rest]
    found = {}
    for name, values in given.items():
        loss, gap, _ = scores(values, right[rest])
        found |= {f"log_loss_{name}": loss, f"gap_{name}": gap}
    more = losses(given["adapted"], right[rest]) - losses(given["before"], right[rest])
    return found, more, np.asarray(data.groups)[rest]


def bootstrap(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the mean over systems."""
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(values[picks].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the means over systems for every number of labels, with intervals."""
    found = []
    for count in COUNTS:
        some = [row for row in rows if row["labels"] == count]
        if not some:
            continue
        entry: dict[str, Any] = {"labels": count, "systems": len(some)}
        for kind in ("log_loss", "gap"):
            before = np.array([row[f"{kind}_before"] for row in some])
            for name in ("before", "adapted", "platt", "known"):
                values = np.array([row[f"{kind}_{name}"] for row in some])
                entry[f"{kind}_{name}"] = float(values.mean())
                if name in ("adapted", "platt"):
                    entry[f"{kind}_{name}_less_before"] = bootstrap(values - before)
        worse = holm(np.array([row["p_worse"] for row in some]))
        entry["worse"] = float(worse.mean())
        found.append(entry)
    return found


def dataset(
    frames: list[Atoms], backbone: Backbone, cache: Path | None, name: str
) -> Dataset:
    labels = uqcalc.Labels("forces", group_key="run")
    folder = None
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        folder = cache / name.replace(" ", "_").replace("/", "_")
    return build_dataset(frames, backbone, labels, exclude=EXCLUDE, cache=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("chgnet", "default"), required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--molecules", type=Path, help="labelled frames of molecules")
    parser.add_argument("--cache", type=Path, help="folder that keeps the features")
    parser.add_argument("--probe", type=Path, help="by default the shipped one")
    parser.add_argument("--most", type=int, default=MOST, help="frames of a system")
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
    if options.probe is not None:
        probe = uqcalc.Probe.load(options.probe)
    if probe is None:
        parser.exit(2, f"no probe ships for {options.model}\n")
    rows, systems_found = [], []
    for name, frames in systems:
        data = dataset(frames, backbone, options.cache, name)
        right = data.errors <= probe.card.boundary
        score = torch.cat([probe.scores([p]) for p in data.predictions]).double()
        loss, gap, mean = scores(probe.card.calibration.logits(score).numpy(), right)
        system = {"system": name, "frames": len(data), "right": float(right.mean())}
        systems_found.append(system | {"mean_p": mean, "log_loss": loss, "gap": gap})
        print(systems_found[-1], flush=True)
        rows += [{"system": name} | row for row in curves(probe, data)]
    means = summary(rows)
    for row in means:
        print(row)
    at_25 = next((row for row in means if row["labels"] == 25), means[0])
    write_result(
        f"new_systems_{options.model}",
        seeds=list(range(DRAWS)),
        rows=[{"kind": "mean", "model": options.model, **row} for row in means]
        + [{"kind": "system", **row} for row in systems_found]
        + [{"kind": "curve", **row} for row in rows],
        targets=[
            target(
                "gap with 25 labels, over the gap before (0.5)",
                at_25["gap_adapted"] / at_25["gap_before"],
                0.5,
                at_most=True,
            ),
            target(
                "share of systems with a significantly worse log loss, at any n",
                max(row["worse"] for row in means),
                0.05,
                at_most=True,
            ),
        ],
        notes=[
            "n frames of a system adapt the probe, the others test it; five draws",
            "the gap is |mean P - share of right frames|",
        ],
    )


if __name__ == "__main__":
    main()
