"""Packs the labelled crystals into the compact set that ships as "pbe-crystals".

    python provenance/universal/pack_labels.py

All structures of at most 40 atoms of the six benchmark sets of microsoft/mattersim
(MIT licence). It prints the size of the file, and how far the packed numbers are from
those of the source.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.geometry import find_mic


sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from mattersim import load_frames

import uqcalc
from uqcalc.labels.shipped import SHIPPED, read_packed, write_packed


COMMIT = "296630372948fd35613939d14d3f97daa27cefda"
LICENCE = """MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
KEYS = {"energy_key": "energy", "forces_key": "forces", "stress_key": "stress"}


def moved(source: Atoms, packed: Atoms) -> np.ndarray:
    """Return how far each atom is from its place in the source, in Å, (atoms,)."""
    steps = packed.positions - source.positions
    return find_mic(steps, source.cell, pbc=True)[1]


def report(source: Sequence[Atoms], packed: Sequence[Atoms]) -> None:
    """Print the largest and usual differences of the packed numbers."""
    pairs = list(zip(source, packed, strict=True))
    shift = np.concatenate([moved(*pair) for pair in pairs])
    forces = [b.arrays["REF_forces"] - a.get_forces() for a, b in pairs]
    largest = max(np.abs(difference).max() for difference in forces)
    rms = [np.sqrt(np.mean(difference**2)) for difference in forces]
    energy = [
        (b.info["REF_energy"] - a.get_potential_energy()) / len(a) for a, b in pairs
    ]
    stress = [b.info["REF_stress"] - a.get_stress() for a, b in pairs]
    cells = [b.cell.array - a.cell.array for a, b in pairs]
    print("structures", len(packed), "atoms", sum(map(len, packed)))
    print("sets", dict(Counter(frame.info["set"] for frame in packed)))
    print(
        f"positions [A]: largest {shift.max():.2g}, median {np.median(shift):.2g}, "
        f"above 1e-4: {np.mean(shift > 1e-4):.3f} of the atoms"
    )
    print(
        f"forces [eV/A]: largest {largest:.2g} (of a component), largest "
        f"RMS of a structure {max(rms):.2g}, median RMS {np.median(rms):.2g}"
    )
    for name, unit, values in (
        ("energies", "eV/atom", energy),
        ("stresses", "eV/A^3", stress),
        ("cells", "A", cells),
    ):
        print(f"{name} [{unit}]: largest {np.abs(values).max():.2g}")


def main() -> None:
    chosen = SHIPPED["pbe-crystals"]
    folder = Path(uqcalc.__file__).parent / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mattersim"))
    parser.add_argument("--output", type=Path, default=folder / chosen.file)
    parser.add_argument("--largest", type=int, default=40, help="atoms")
    options = parser.parse_args()
    if not options.data.is_dir():
        parser.exit(2, f"labels must be in a folder, got {options.data}: see --data\n")
    frames = load_frames(options.data, options.largest)
    card = {
        "source": f"github.com/microsoft/mattersim @ {COMMIT}, data/benchmarks/*.xyz",
        "licence": LICENCE,
        "method": chosen.method,
    }
    path = write_packed(options.output, frames, uqcalc.Labels(**KEYS), card)
    print("bytes", path.stat().st_size)
    report(frames, read_packed(path))


if __name__ == "__main__":
    main()
