"""Tables of the page of evidence, written from benchmarks/results/*.json alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
Row = Mapping[str, Any]
Format = Callable[[Any], str]


def digits(count: int, value: Any) -> str:
    """Return a number with so many digits behind the point; "-" for None and NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.{count}f}"


def interval(value: Any) -> str:
    """Return the two ends of an interval."""
    return "-" if value is None else " to ".join(f"{end:.2f}" for end in value)


F0, F1, F2, F3 = (partial(digits, count) for count in range(4))


@dataclass(frozen=True)
class Table:
    """Which rows and which entries of result files make a table.

    Attributes
    ----------
    files : tuple of str
        Names without ending; the rows of all are shown, one file after the other.
    columns : tuple of (heading, entry of a row, formatter)
    keep : callable
        Says of a row whether it is shown.
    rows : str
        Entry of the file that holds the rows.
    """

    files: tuple[str, ...]
    columns: tuple[tuple[str, str, Format], ...]
    keep: Callable[[Row], bool] = lambda _: True
    rows: str = "rows"

    def __call__(self) -> str:
        """Return the table in Markdown, and what it was measured with.

        Raises
        ------
        KeyError
            If no row has the entry of a column: the file has changed.
        """
        results = [_read(file) for file in self.files]
        rows = [r for result in results for r in result[self.rows] if self.keep(r)]
        for heading, entry, _ in self.columns:
            if not any(entry in row for row in rows):
                msg = (
                    f"column {heading!r} must be an entry of the rows of {self.files}, "
                    f"got no row with {entry!r}; change docs/hooks/site_evidence.py"
                )
                raise KeyError(msg)
        cells = [[f(row.get(entry)) for _, entry, f in self.columns] for row in rows]
        headings = [heading for heading, _, _ in self.columns]
        return "\n\n".join([_markdown(headings, cells), *map(_source, results)])


def table(name: str) -> str:
    """Return one table of the page, by its name."""
    if name == "targets":
        return targets()
    if name in _BLOCKS:
        return _by_labels(name)
    return TABLES[name]()


def targets() -> str:
    """Return how many targets each benchmark set itself, and how many it met."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8")).get("targets")
        if not found:
            continue
        missed = [target["name"] for target in found if not target["met"]]
        named = "; ".join(missed[:3])
        if len(missed) > 3:
            named += f"; and {len(missed) - 3} more"
        met = f"{len(found) - len(missed)} of {len(found)}"
        rows.append([f"`{path.stem}`", met, named or "-"])
    return _markdown(["benchmark", "targets met", "missed"], rows)


_BLOCKS = {
    "random": ("energy", "energy_per_atom", "forces", "atoms"),
    "composition": ("energy", "energy_per_atom", "forces", "atoms"),
    "molecules": ("energy", "forces", "atoms"),
}


def _by_labels(block: str) -> str:
    """Return AUROC of every method against the number of labels, in one block."""
    result = _read("discrimination")
    rows = [r for r in result["rows"] if r["block"] == block and r["part"] == "all"]
    found = {(r["row"], r["target"], r["labels"]): r["auroc"] for r in rows}
    methods = dict.fromkeys(["uqcalc", *sorted({row["row"] for row in rows})])
    counts = sorted({row["labels"] for row in rows})
    lines = []
    for method in methods:
        cells = []
        for target in _BLOCKS[block]:
            numbers = [F3(found.get((method, target, count))) for count in counts]
            cells.append("-" if set(numbers) == {"-"} else " / ".join(numbers))
        lines.append([method, *cells])
    labels = " / ".join(map(str, counts))
    headings = ["AUROC", *(t.replace("_", " ") for t in _BLOCKS[block])]
    text = _markdown(headings, lines)
    return f"With {labels} labels.\n\n{text}\n\n{_source(result)}"


def _read(file: str) -> dict[str, Any]:
    path = RESULTS / f"{file}.json"
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    # which potential a row of the two universal probes is about
    potential = {
        "chgnet_probe": "CHGNet 0.3.0",
        "chgnet_stress_probe": "CHGNet 0.3.0",
        "sevennet_stress_probe": "SevenNet-0",
        "sevennet_probe": "SevenNet-0",
        "sevennet_energy_per_atom_probe": "SevenNet-0",
    }
    if name := potential.get(file):
        result["rows"] = [row | {"potential": name} for row in result["rows"]]
    return result | {"file": file}


def _source(result: Mapping[str, Any]) -> str:
    host, versions = result["host"], result["versions"]
    made = [f"{host['cpu']}, {host['torch_threads']} thread(s)"]
    made += [
        f"{name} {versions[name]}" for name in ("torch", "ase") if name in versions
    ]
    file = f"benchmarks/results/{result['file']}.json"
    return f"<small>`{file}`: {', '.join(made)}.</small>"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


# Kinds of frames of the bundled probe's test, in words.
KINDS = {
    "cluster": "clusters",
    "dimer": "dimers, 1.2 to 8 Å apart",
    "large": "drugs, 27 to 46 atoms",
    "mmff": "heated with MMFF94",
    "ramp beyond": "heated beyond 1500 K",
    "ramp to 1500 K": "heated, below 1500 K",
    "scaled": "all distances scaled",
    "small": "rattled, 2 to 7 atoms",
    "stretch, 2 to 7 atoms": "one bond stretched, 2 to 7 atoms",
    "stretch, larger": "one bond stretched, larger molecules",
    "xtb_md": "dynamics, 300 to 1000 K",
}
_SCORES = (
    ("AUROC", "auroc", F3),
    ("ECE", "ece", F3),
    ("noise floor of ECE", "ece_noise_floor", F3),
)
TABLES = {
    "overhead": Table(
        ("overhead",),
        (
            ("model", "model", str),
            ("atoms", "atoms", str),
            ("what runs", "what", str),
            ("bare step, ms", "bare_ms", F1),
            ("added, ms", "added_ms", F1),
            ("1 + added / bare", "by_parts", F3),
        ),
        keep=lambda row: "added_ms" in row,
    ),
    "default": Table(
        ("fit_default_probe",),
        (
            ("probe", "probe", str),
            ("frames", "kind", lambda kind: KINDS.get(kind, kind)),
            ("number", "frames", str),
            ("share right", "right", F3),
            ("mean P", "mean_p", F3),
            ("RELIABLE", "reliable", str),
            ("of these wrong", "reliable_wrong", str),
            ("AUROC", "auroc", F3),
        ),
    ),
    "stretched": Table(
        ("stretched",),
        (
            ("bond", "kind", str),
            ("structures", "frames", str),
            ("wrong", "wrong", str),
            ("RELIABLE and wrong", "wrong_reliable", str),
            ("RELIABLE and right", "right_reliable", str),
        ),
    ),
    "step": Table(
        ("step",),
        (
            ("atoms", "atoms", str),
            ("bare step, ms", "bare_ms", F2),
            ("the wrapper adds, ms", "wrapped_adds_ms", F2),
            ("wrapper and monitor add, ms", "watched_adds_ms", F2),
        ),
    ),
    "universal": Table(
        ("chgnet_probe", "sevennet_probe"),
        (
            ("potential", "potential", str),
            ("regime", "regime", str),
            ("structures", "structures", str),
            ("share reliable", "prevalence", F3),
            ("accuracy", "accuracy", F3),
            ("majority class", "majority_accuracy", F3),
            *_SCORES,
        ),
    ),
    "stress": Table(
        ("chgnet_stress_probe", "sevennet_stress_probe"),
        (
            ("potential", "potential", str),
            ("regime", "regime", str),
            ("share reliable", "prevalence", F3),
            ("accuracy", "accuracy", F3),
            ("majority class", "majority_accuracy", F3),
            *_SCORES,
        ),
    ),
    "energy": Table(
        ("sevennet_energy_per_atom_probe",),
        (
            ("potential", "potential", str),
            ("regime", "regime", str),
            ("structures", "structures", str),
            ("share reliable", "prevalence", F3),
            *_SCORES,
        ),
    ),
    "stress-scan": Table(
        ("stress_scan_chgnet",),
        (
            ("scale of the lattice constant", "scale", F2),
            ("geometries", "geometries", str),
            ("refused by the potential", "refused", str),
            ("wrong", "wrong", str),
            ("wrong and RELIABLE", "wrong_and_reliable", str),
            ("others and RELIABLE", "others_and_reliable", str),
        ),
    ),
    "halts": Table(
        ("halts_when_it_should",),
        (
            ("detector", "detector", str),
            ("limit", "limit", F3),
            ("halted in time", "right", F2),
            ("95 % interval", "right, 95 %", interval),
            ("too early", "early", F2),
            ("too late or never", "late or missed", F2),
            ("false halts per ps", "false_per_ps", F3),
        ),
    ),
    "shifted": Table(
        ("discrimination",),
        (
            ("method", "row", str),
            ("cells", "cells", str),
            ("AUROC", "auroc", F3),
            ("Spearman", "spearman", F3),
            ("AURC over random", "aurc", F3),
        ),
        rows="shifted",
    ),
    "force-delta": Table(
        ("force_delta",),
        (
            ("block", "block", str),
            ("structures", "structures", str),
            ("median error, eV/Å", "median error", F3),
            ("Force Delta", "force_delta", F3),
            ("spread of five models", "ensemble spread", F3),
            ("latent distance", "latent distance", F3),
            ("largest force", "largest force", F3),
        ),
    ),
    "force-delta-cost": Table(
        ("force_delta_cost",),
        (
            ("atoms", "atoms", str),
            ("what", "what", str),
            ("median, ms", "ms", F0),
            ("over direct only", "over direct", F2),
            ("over conservative only", "over conservative", F2),
        ),
    ),
    "distilled": Table(
        ("distilled_head",),
        (
            ("potential", "potential", str),
            ("block", "block", str),
            ("structures", "structures", str),
            ("distilled Force Delta", "force_delta", F3),
            ("committee", "committee", F3),
            ("latent distance", "latent distance", F3),
            ("largest force", "largest force", F3),
        ),
    ),
    "rotation": Table(
        ("orb_rotation",),
        (
            ("rotations averaged", "rotations", str),
            ("features move by", "features", F2),
            ("energy, meV/atom", "energy", F2),
            ("P moves by, mean", "probability", F3),
            ("P moves by, most", "probability, largest", F2),
            ("verdicts that change", "verdicts", F2),
        ),
    ),
    "few-groups": Table(
        ("few_groups",),
        (
            ("groups", "groups", str),
            ("share of the group", "shared", F1),
            ("shift", "shift", F1),
            ("slope, as fitted", "slope", F2),
            ("slope, widened", "slope_widened", F2),
        ),
    ),
    "new-systems": Table(
        ("new_systems_chgnet", "new_systems_default"),
        (
            ("potential", "model", str),
            ("labels", "labels", str),
            ("systems", "systems", str),
            ("gap, probe as it is", "gap_before", F3),
            ("gap, adapted", "gap_adapted", F3),
            ("gap, Platt", "gap_platt", F3),
            ("log loss, as it is", "log_loss_before", F3),
            ("log loss, adapted", "log_loss_adapted", F3),
            ("log loss, Platt", "log_loss_platt", F3),
        ),
        keep=lambda row: row["kind"] == "mean",
    ),
    "scale": Table(
        ("scale",),
        (
            ("structures", "structures", str),
            ("feature width", "width", str),
            ("on disk, GB", "gigabytes", F2),
            ("fit, s", "fit_s", F0),
            ("peak memory, GB", "peak_gb", F2),
        ),
    ),
    "rough": Table(
        ("rough",),
        (
            ("what was damaged", "kind", str),
            ("tried", "tried", str),
            ("clear error", "clear error", str),
            ("same answer", "same answer", str),
            ("another answer in silence", "other answer in silence", str),
            ("foreign traceback", "foreign traceback", str),
        ),
    ),
    "garbage": Table(
        ("rough",),
        (
            ("potential", "potential", str),
            ("structures", "kind", str),
            ("number", "structures", str),
            ("refused", "refused", str),
            ("RELIABLE", "reliable", str),
            ("SUSPECT", "suspect", str),
            ("UNRELIABLE", "unreliable", str),
        ),
        rows="garbage",
    ),
}
