"""The adversarial block: structures for which the two forces of a member differ."""

from __future__ import annotations

from ase import Atoms

from uqcalc import ForceDelta, Policy, ReliableCalculator, Threshold, attack
from uqcalc.attacking.ascent import AttackSettings
from uqcalc.types import Backbone
from zeolites.blocks import attack_starts


STARTS = 12
STEPS = 14
# U rises from 0.05 to several eV/Å; distances stay above 0.7 sums of covalent radii
SETTINGS = AttackSettings(
    alpha=2.0, beta=0.002, steps=STEPS, max_step=0.06, closest=0.7
)
LIMITS = Policy([Threshold("force_delta", suspect=0.15, unreliable=0.3)])


def attacked(backbone: Backbone) -> list[Atoms]:
    """Return the frames of all paths without the starts."""
    calculator = ReliableCalculator(backbone, signals=[ForceDelta()], policy=LIMITS)
    made = []
    for index, atoms in enumerate(attack_starts(STARTS)):
        for path in attack(atoms, calculator, SETTINGS):
            for frame in path.frames[1:]:
                plain = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True)
                plain.info["path"] = index
                made.append(plain)
    return made
