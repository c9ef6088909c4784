"""Check that a backbone uses charge and spin exactly as its ``reads`` states."""

from __future__ import annotations

from ase import Atoms

from uqcalc.backbones.base import Backbone
from uqcalc.chargespin import CHARGES, INITIAL, NAMES
from uqcalc.errors import BackboneError
from uqcalc.testing.clauses import Limits
from uqcalc.testing.instruments import predict


# Some models need both; the last entry sets charge and spin together.
_TOLD = (*((name,) for name in (*NAMES, INITIAL)), ("charge", "spin"))


def check_told_apart(backbone: Backbone, atoms: Atoms, limits: Limits) -> None:
    """Check that charge and spin change the energy exactly if they are in ``reads``.

    A backbone whose ``reads`` is None (not known) is not checked.
    """
    if backbone.reads is None:
        return
    plain = predict(backbone, atoms)
    for names in _TOLD:
        said = atoms.copy()
        for name in names:
            _tell(said, name)
        try:
            got = predict(backbone, said)
        except BackboneError:  # the value is refused, not ignored
            continue
        noise = 10 * (limits.atol + limits.rtol * abs(plain.energy))
        changed = abs(got.energy - plain.energy) > noise
        read = bool(backbone.reads & {*names})
        where = " and ".join(names)
        message = (
            f"{where} must be in `reads` exactly where it changes the energy, got "
            f"{sorted(backbone.reads)} and a change of "
            f"{got.energy - plain.energy:.2g} eV"
        )
        holds = got.energy != plain.energy if read else not changed
        limits.require("charge_spin", holds, message)


def _tell(atoms: Atoms, name: str) -> None:
    if name == INITIAL:
        atoms.set_initial_charges([1.0] + [0.0] * (len(atoms) - 1))
    else:
        usual = 0 if name in CHARGES else 1
        atoms.info[name] = 1 + int(atoms.info.get(name, usual))  # not the usual value
