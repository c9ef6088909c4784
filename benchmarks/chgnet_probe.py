"""Fit the CHGNet probe that ships with the package, on PBE(+U) force labels.

Labels: the benchmark sets of microsoft/mattersim (MIT), in ``--data``. Structures
of one reduced formula form a group, so that no material is in two splits. Two of
the six sets (MPtrj) are in CHGNet's own training pool; the card says so.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ase import Atoms
from ase.io import read
from common import target, write_result

import uqcalc
from uqcalc.probe.checkpoint import Probe


SETS = (
    "mptrj-random-1k",
    "mptrj-highest-stress-1k",
    "alexandria-random-1k",
    "mpf-alkali-TP",
    "mpf-TP",
    "random-TP",
)
DESCRIPTION = (
    "For demonstrations and learning: P(RMS force error against PBE(+U) <= boundary) "
    "for CHGNet 0.3.0 on crystals of few atoms. Labels: benchmark sets of "
    "microsoft/mattersim (MIT licence), of which the MPtrj frames are in CHGNet's own "
    "training pool."
)


def load_frames(folder: Path, largest: int) -> list[Atoms]:
    frames = []
    for name in SETS:
        for frame in read(folder / f"{name}.xyz", ":"):
            if len(frame) <= largest:
                formula = frame.symbols.formula.reduce()[0]
                frame.info.update(set=name, material=str(formula))
                frames.append(frame)
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mattersim"))
    parser.add_argument("--output", type=Path, default=Path("chgnet.probe"))
    parser.add_argument("--boundary", type=float, default=0.2, help="eV/Å")
    parser.add_argument("--largest", type=int, default=16, help="atoms")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.exit(2, f"labels must be in a folder, got {options.data}: see --data\n")
    from chgnet.model.dynamics import CHGNetCalculator

    frames = load_frames(options.data, options.largest)
    labels = uqcalc.Labels(
        target="forces",
        forces_key="forces",
        group_key="material",
        boundary=options.boundary,
    )
    result = uqcalc.fit(
        frames,
        CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore"),
        labels,
        uqcalc.Recipe(seed=options.seed),
        exclude=("duplicate", "unknown elements"),
    )
    card = replace(result.probe.card, description=DESCRIPTION)
    Probe(card, result.probe.network, result.probe.statistics).save(options.output)
    print(result)
    report = result.report
    write_result(
        "chgnet_probe",
        seeds=[options.seed],
        rows=[{"boundary_eV_per_A": card.boundary, **card.training, **report}],
        targets=[
            target(
                "accuracy against the majority class",
                report["accuracy"],
                report["majority_accuracy"],
                at_most=False,
            )
        ],
        notes=[
            f"structures of at most {options.largest} atoms",
            "groups are reduced formulas: no material is in two splits",
            "two of the six sets (MPtrj) are in CHGNet's own training pool",
        ],
    )


if __name__ == "__main__":
    main()
