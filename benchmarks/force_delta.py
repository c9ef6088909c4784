"""Test whether Force Delta ranks true force errors.

Other signals are an ensemble, the latent distance and the largest force.

    python benchmarks/force_delta.py --members FOLDER
    python benchmarks/force_delta.py --pretrained orb-v3-direct-20-mpa --frames dft.xyz

FOLDER must have five small Orbs and a larger reference, trained by
``zeolites/train.py``. The reference, which was trained on all labelled frames, and
CHGNet label the structures without DFT forces (rattled, strained, adversarial).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read as read_file
from common import print_table, print_targets, read_result, target, write_result
from scipy.stats import spearmanr


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

SEEDS = range(5)
ENSEMBLE_MARGIN = 0.05
POOLED_TARGET = 0.85
SIGNALS = ("force_delta", "ensemble spread", "latent distance", "largest force")
# Spearman's r_s on adversarial structures of orb-v3-direct-20-mpa, table 2 of the paper
PAPER = {
    "Mg17Al12": 1.00,
    "LGPS": 1.00,
    "ice": 0.91,
    "MOF5": -0.31,
    "CaPd-NH2": 0.58,
    "paracetamol": 0.97,
    "stachyose": 0.93,
    "Ac-Ala3-NHMe": 0.95,
    "DHA": 0.72,
    "aspirin": -0.02,
}


def main() -> None:
    """Run the ranking, or a pretrained Orb on the user's frames."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--members", type=Path, default=Path("zeolite_orbs"))
    parser.add_argument("--pretrained", help="name of official Orb weights")
    parser.add_argument("--frames", type=Path, help="frames with REF_forces and system")
    parser.add_argument("--figure", action="store_true", help="of the stored result")
    given = parser.parse_args()
    if given.figure:
        from zeolites.figures import draw

        draw(read_result("force_delta")["rows"], SIGNALS)
        return
    torch.manual_seed(0)
    if given.pretrained:
        run_pretrained(given.pretrained, given.frames)
    else:
        run_ranking(given.members)


def run_ranking(folder: Path) -> None:
    """Rank the errors of five members on all blocks and write the result."""
    from zeolites.adversarial import attacked
    from zeolites.blocks import labelled_blocks, training_frames, unlabelled_blocks
    from zeolites.figures import draw
    from zeolites.frames import require_data
    from zeolites.reading import (
        chgnet_forces,
        conservative,
        fit_distance,
        member,
        read as read_signals,
    )

    require_data()
    members = [member(_existing(folder / f"member_{s}.safetensors")) for s in SEEDS]
    reference = member(_existing(folder / "reference.safetensors"))
    blocks = labelled_blocks()
    truth = {n: [a.arrays["forces"] for a in block] for n, block in blocks.items()}
    others = unlabelled_blocks() | {"adversarial": attacked(members[0])}
    second = {name: chgnet_forces(block) for name, block in others.items()}
    truth |= {name: conservative(reference, block) for name, block in others.items()}
    blocks |= others
    seen = training_frames(300)
    distances = [fit_distance(backbone, seen) for backbone in members]
    answers = {
        name: [
            read_signals(backbone, distance, block)
            for backbone, distance in zip(members, distances, strict=True)
        ]
        for name, block in blocks.items()
    }
    readings = {name: _readings(answers[name], truth[name]) for name in blocks}
    opinions = {name: _readings(answers[name], second[name]) for name in others}
    rows = [_row(name, [readings[name]]) for name in blocks]
    pooled = _row("all pooled", list(readings.values()))
    mean = _mean_row(rows)
    checks = [_row(f"{n}, CHGNet as reference", [o]) for n, o in opinions.items()]
    other = readings | opinions
    checks.append(_row("all pooled, CHGNet as reference", list(other.values())))
    again = [_row(name, [block]) for name, block in other.items()]
    checks.append(_mean_row(again) | {"block": "mean over blocks, CHGNet as reference"})
    targets = [
        target(
            "Spearman of Force Delta, pooled",
            pooled["force_delta"],
            POOLED_TARGET,
            at_most=False,
        ),
        target(
            "Spearman of Force Delta, mean over blocks, minus the ensemble's",
            mean["force_delta"] - mean["ensemble spread"],
            -ENSEMBLE_MARGIN,
            at_most=False,
        ),
    ]
    everything = [*rows, pooled, mean, *checks]
    columns = {"block": "block", "structures": "n", "median error": "median eV/Å"}
    columns |= {name: name for name in SIGNALS}
    print_table("Spearman with the true RMS force error", everything, columns)
    print_targets(targets)
    training = {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
    }
    write_result(
        "force_delta",
        seeds=list(SEEDS),
        rows=everything,
        targets=targets,
        notes=_notes(reference, blocks, truth, second, conservative),
        more={"training": training},
    )
    draw(everything, SIGNALS)


def _readings(answers: Sequence[Any], truth: Sequence[np.ndarray]) -> list[dict]:
    """Return signals and true errors of each member on one block."""
    from zeolites.reading import rms

    stacked = [
        np.stack(forces) for forces in zip(*(a.direct for a in answers), strict=True)
    ]
    spread = np.array([np.sqrt(np.mean(f.var(axis=0, ddof=1))) for f in stacked])
    mean_error = rms([forces.mean(axis=0) for forces in stacked], truth)
    return [
        {
            "error": rms(entry.direct, truth),
            "force_delta": entry.force_delta,
            "ensemble spread": spread,
            "latent distance": entry.distance,
            "largest force": entry.max_force,
            "mean error": mean_error,
        }
        for entry in answers
    ]


def _row(name: str, blocks: Sequence[list[dict]]) -> dict[str, Any]:
    """Return Spearman's r_s over some blocks, averaged over the members."""
    members = [
        {key: np.concatenate([block[m][key] for block in blocks]) for key in block0}
        for m, block0 in enumerate(blocks[0])
    ]
    row: dict[str, Any] = {
        "block": name,
        "structures": len(members[0]["error"]),
        "median error": float(np.median([np.median(m["error"]) for m in members])),
        "median force_delta": float(
            np.median([np.median(m["force_delta"]) for m in members])
        ),
    }
    for signal in SIGNALS:
        ranks = [spearmanr(m[signal], m["error"]).statistic for m in members]
        row[signal] = float(np.mean(ranks))
        row[f"{signal}, spread over members"] = float(np.std(ranks, ddof=1))
    one = members[0]
    own = spearmanr(one["ensemble spread"], one["mean error"]).statistic
    row["ensemble spread, of the error of its mean"] = float(own)
    return row


def _mean_row(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    numbers = {key: np.mean([row[key] for row in rows]) for key in SIGNALS}
    return {"block": "mean over blocks", "structures": len(rows)} | numbers


def _notes(
    reference: Any,
    blocks: Mapping[str, list[Atoms]],
    truth: Mapping[str, list[np.ndarray]],
    second: Mapping[str, list[np.ndarray]],
    conservative: Any,
) -> list[str]:
    """Return the errors of the reference, on blocks where they are known."""
    from zeolites.reading import chgnet_forces, rms

    known = [name for name in blocks if name not in second]
    notes = ["reference: one larger Orb, trained on all labelled frames (conservative)"]
    for name in known:
        own = rms(conservative(reference, blocks[name]), truth[name])
        other = rms(chgnet_forces(blocks[name][:40]), truth[name][:40])
        notes.append(
            f"{name}: RMS force error of the reference {np.median(own):.3f} eV/Å (it "
            f"has seen them), of CHGNet {np.median(other):.3f} eV/Å (median)"
        )
    for name, forces in second.items():
        apart = rms(truth[name], forces)
        notes.append(
            f"{name}: reference and CHGNet differ by {np.median(apart):.3f} eV/Å "
            "(median RMS)"
        )
    return notes


def run_pretrained(name: str, frames: Path | None) -> None:
    """Print the table of the paper and that of the official weights."""
    from uqcalc import ForceDelta, Policy, ReliableCalculator, Threshold, UqcalcError
    from uqcalc.annotating.trajectory import annotate
    from uqcalc.models.named import open_model

    try:
        calculator = open_model(f"orb:{name}")
    except UqcalcError as error:
        raise SystemExit(f"force_delta: {error}") from error
    if frames is None:
        raise SystemExit(
            "force_delta: --frames must name structures with REF_forces and an info "
            f"key 'system' (the paper's: {', '.join(PAPER)}), got none"
        )
    policy = Policy([Threshold(ForceDelta.name, suspect=1.0, unreliable=2.0)])
    watched = ReliableCalculator(calculator, signals=[ForceDelta()], policy=policy)
    given = read_file(frames, ":")
    rows = []
    for system in dict.fromkeys(a.info["system"] for a in given):
        chosen = [a for a in given if a.info["system"] == system]
        done = list(annotate(chosen, watched))
        u = [a.info["force_delta"] for a in done]
        error = [
            np.sqrt(
                np.mean((b.arrays["predicted_forces"] - a.arrays["REF_forces"]) ** 2)
            )
            for a, b in zip(chosen, done, strict=True)
        ]
        own = float(spearmanr(u, error).statistic)
        rows.append({"system": system, "own": own, "paper": PAPER.get(system)})
    print_table(
        f"Spearman, {name}", rows, {"system": "system", "own": "here", "paper": "paper"}
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise SystemExit(
            f"force_delta: {path.name} must be in --members, got none there; train "
            "it with zeolites/train.py"
        )
    return path


if __name__ == "__main__":
    main()
