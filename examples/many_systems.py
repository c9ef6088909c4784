"""Heat many molecules at once with TorchSim, without those that are UNRELIABLE."""

import argparse

import torch
import torch_sim as ts
from ase.build import molecule
from torch_sim.models.mace import MaceModel

from uqcalc.models.bundled import load_model
from uqcalc.torchsim import ReliableModel, guard, numbered


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--copies", type=int, default=20)
parser.add_argument("--steps", type=int, default=1000)
asked = parser.parse_args()

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
inner = MaceModel(load_model(), device=device, dtype=torch.float32)
model = ReliableModel(inner, probe="auto")  # or probe="my.probe" for your potential
frames = [molecule(name) for name in ("CH3CH2OH", "CH3OH") * asked.copies]

guarded = guard(ts.Integrator.nvt_langevin, log="many.jsonl", flagged="left.xyz")
final = ts.integrate(
    numbered(frames, model),
    model,
    integrator=guarded,
    n_steps=asked.steps,
    temperature=1200,  # K
    timestep=0.0005,  # ps
)
guarded.close()

print(guarded.summary())
for system, level in sorted(guarded.levels.items()):
    print(system, frames[system].get_chemical_formula(), level.name)
