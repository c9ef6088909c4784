"""Fit a probe for a potential whose weights you have, and print its card's figures.

    python benchmarks/train_probe.py --model mace_off:small --data labelled.xyz

Models are named as everywhere (``uqcalc fit --help``): ``mace_off:SIZE``,
``mace_mp:SIZE``, ``orb:NAME``, ``mace:FILE``. AIMNet2 is ``aimnet2:NAME``. What a
potential downloads must be reachable; nothing else is fetched. The figures go to
``results/train_probe_MODEL.json``: no table holds any that this has not written.
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
