"""Fit a probe for your own potential, and print its scores.

    python benchmarks/train_probe.py --model mace_off:small --data labelled.xyz

Names of models are those of ``uqcalc fit --help`` (``mace_off:SIZE``,
``mace_mp:SIZE``, ``orb:NAME``, ``mace:FILE``) and ``aimnet2:NAME``. Some potentials
download their weights; the script downloads nothing else. It writes the scores to
``results/train_probe_MODEL.json``.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ase.calculators.calculator import BaseCalculator
from common import write_result

import uqcalc
from uqcalc.files.structures import read_frames


def opened(model: str) -> BaseCalculator:
    kind, _, name = model.partition(":")
    if kind == "aimnet2":
        from aimnet.calculators import AIMNet2ASE

        return AIMNet2ASE(name or "aimnet2")
    return uqcalc.open_model(model.replace("mace-off23-", "mace_off:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", default="forces")
    parser.add_argument("--boundary", default=None)
    parser.add_argument("--group", default="formula", help="info entry, or formula")
    parser.add_argument("--output", type=Path, default=Path("my.probe"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    labels = uqcalc.Labels(
        options.target, group_key=options.group, boundary=options.boundary
    )
    result = uqcalc.fit(
        read_frames(options.data),
        opened(options.model),
        labels,
        uqcalc.Recipe(seed=options.seed),
        exclude=("duplicate",),
    )
    print(result)
    result.probe.save(options.output)
    card = result.probe.card
    write_result(
        "train_probe_" + re.sub(r"\W+", "_", options.model),
        seeds=[options.seed],
        rows=[{"model": options.model, **card.training, **result.report}],
        notes=[f"{card}"],
    )


if __name__ == "__main__":
    main()
