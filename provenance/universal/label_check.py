"""Compare labels of the stress with labels of the energy, where the data allow it.

    python label_check.py --data ../shared/data/mattersim

Two frames of one material with nearby cells and positions must satisfy, to third order,

    E_2 - E_1 = V sum_ij s_ij e_ij - sum_i f_i · dr_i

with the mean stress s, mean volume V and mean forces f of both frames, the strain e
between their cells, and the moves dr at constant strain. Only labels are used, so the
errors of a potential have no effect. Pairs are used if no strain component is above
``STRAIN`` and no move above ``MOVE``. Frames without such a partner cannot be tested.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read


SETS = ("mptrj-highest-stress-1k", "mptrj-random-1k")
STRAIN, MOVE = 0.05, 0.2  # -, Å
SHARE, LEAST = 0.2, 0.005  # largest misfit: share of the work, and eV/atom


def differences(one: Atoms, two: Atoms) -> tuple[float, float] | None:
    """Return energy difference and work in eV; None if the frames are too far apart."""
    deformation = np.linalg.solve(one.cell.array, two.cell.array)
    strain = (deformation + deformation.T) / 2 - np.eye(3)
    moves = two.get_scaled_positions(wrap=False) - one.get_scaled_positions(wrap=False)
    moves = (moves - np.round(moves)) @ (one.cell.array + two.cell.array) / 2
    if np.abs(deformation - np.eye(3)).max() > STRAIN or np.abs(moves).max() > MOVE:
        return None
    stress, forces = (
        (first + second) / 2
        for first, second in (
            (one.get_stress(voigt=False), two.get_stress(voigt=False)),
            (one.get_forces(), two.get_forces()),
        )
    )
    volume = (one.get_volume() + two.get_volume()) / 2
    work = volume * (stress * strain).sum() - (forces * moves).sum()
    return two.get_potential_energy() - one.get_potential_energy(), float(work)


def pairs(frames: list[Atoms]) -> Iterator[tuple[Atoms, Atoms]]:
    """Yield the pairs of frames with the same sequence of atoms."""
    alike: dict[bytes, list[Atoms]] = defaultdict(list)
    for atoms in frames:
        alike[atoms.numbers.tobytes()].append(atoms)
    for group in alike.values():
        yield from combinations(group, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mattersim"))
    folder = parser.parse_args().data
    if not folder.is_dir():
        parser.exit(2, f"labels must be in a folder, got {folder}: see --data\n")
    frames = []
    for name in SETS:
        for row, atoms in enumerate(read(folder / f"{name}.xyz", ":")):
            atoms.info.update(set=name, row=row)
            frames.append(atoms)
    tested, wrong, count, misfits = set(), set(), 0, 0
    for one, two in pairs(frames):
        if (found := differences(one, two)) is None:
            continue
        count += 1
        names = {(a.info["set"], a.info["row"]) for a in (one, two)}
        tested |= names
        gap = abs(found[0] - found[1])
        if gap > max(SHARE * abs(found[1]), LEAST * len(one)):
            misfits += 1
            wrong |= names
            print(f"{one.symbols}: energies {found[0]:.3f} eV, work {found[1]:.3f} eV")
    strained = sum(name == SETS[0] for name, _ in tested)
    print(
        f"{count} pairs test {len(tested)} of {len(frames)} frames, {strained} of them "
        f"of {SETS[0]}; {misfits} pairs misfit, with {len(wrong)} frames"
    )


if __name__ == "__main__":
    main()
