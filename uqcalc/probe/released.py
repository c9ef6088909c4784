"""What the released PROBE training feeds in place of a model's whole energy."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ase.data import atomic_numbers, chemical_symbols

from uqcalc.backbones.aimnet2 import AIMNet2Backbone
from uqcalc.backbones.base import Backbone
from uqcalc.errors import ProbeError


_ADVICE = (
    "atomic_energies={element: eV} must be given for a published probe on AIMNet2, "
    "got none and a model that does not carry them: its released training takes them "
    "off the energy; pass those of the model's training (its .sae file), or zeros "
    "where its energies have none"
)


def released_energies(
    backbone: Backbone,
    given: Mapping[int | str, float] | None,
    *,
    charges: bool = False,
) -> dict[str, float]:
    """Return what is taken off the predicted energy of each atom, in eV.

    The released training of AIMNet2 probes (isayevlab/PROBE, ``train_aimnet2.py``) runs
    the network before its export: without the atomic energies of the linear regression
    that export adds, and without dispersion. That of MACE probes takes nothing off.

    Parameters
    ----------
    backbone : Backbone
    given : mapping or None
        eV by atomic number or symbol. By default AIMNet2's own atomic shifts, which
        hold these energies and what training added to them; nothing for other models.
    charges : bool
        Whether the probe reads charges, as released ones do for AIMNet2 only.

    Returns
    -------
    dict
        By atomic number, as a `Card` holds it; empty where nothing is taken off.

    Raises
    ------
    ProbeError
        For AIMNet2 if nobody knows the energies, or if a dispersion correction is in
        its energy; for anything that is no energy of an element.
    """
    of_aimnet2 = isinstance(backbone, AIMNet2Backbone)
    if isinstance(backbone, AIMNet2Backbone) and backbone.has_dispersion:
        msg = (
            "AIMNet2 model must be without dispersion for a published probe, as its "
            "released training is, got one that adds it; build it with "
            "AIMNet2Calculator(..., needs_dispersion=False) and add the correction as "
            "another calculator: SumCalculator([AIMNet2ASE(...), ...])"
        )
        raise ProbeError(msg)
    if given is not None:
        return dict(_entry(element, energy) for element, energy in given.items())
    if isinstance(backbone, AIMNet2Backbone) and backbone.atomic_shifts:
        return {str(z): energy for z, energy in backbone.atomic_shifts.items()}
    if of_aimnet2 or charges:
        raise ProbeError(_ADVICE)
    return {}


def _entry(element: int | str, energy: float) -> tuple[str, float]:
    known = element if isinstance(element, int) else atomic_numbers.get(element, 0)
    if isinstance(element, bool) or not 0 < known < len(chemical_symbols):
        msg = (
            "atomic_energies must have atomic numbers or symbols as keys, got "
            f"{element!r}; write {{1: -13.6}} or {{'H': -13.6}}"
        )
        raise ProbeError(msg)
    if not (isinstance(energy, int | float) and math.isfinite(energy)):
        msg = (
            f"atomic energy of {chemical_symbols[known]} must be a finite number in "
            f"eV, got {energy!r}; correct it"
        )
        raise ProbeError(msg)
    return str(int(known)), float(energy)
