"""The event of a monitored step."""

from __future__ import annotations

from typing import Any

import numpy as np

from uqcalc.asking import why_ask
from uqcalc.records import Assessment, BandEvent, Event
from uqcalc.watching.aserun import timestep_fs
from uqcalc.watching.band import Band
from uqcalc.watching.structure import Structure


def event_of(
    step: int,
    assessment: Assessment | None,
    watched: Structure | Band,
    dynamics: Any,
) -> Event:
    """Return the event of the step that ``watched`` has looked at last."""
    results = {} if assessment is None else assessment.results()
    timestep = timestep_fs(dynamics)
    moving = timestep is not None and watched.atoms.has("momenta")
    entries: dict[str, Any] = {
        "step": step,
        "time_fs": None if timestep is None else step * timestep,
        "temperature_K": (float(watched.atoms.get_temperature()) if moving else None),
        "energy_eV": watched.energy,
        "level": None,
        "readings": {},
        "values": {k: float(v) for k, v in results.items() if np.ndim(v) == 0},
        "reasons": (),
        "worst_atoms": (),
    }
    if assessment is not None:
        entries["level"] = assessment.level
        entries["readings"] = {r.signal: r.risk for r in assessment.readings}
        entries["reasons"] = assessment.verdict.reasons
        entries["worst_atoms"] = tuple(assessment.worst_atoms())
        if (asked := why_ask(assessment)) is not None:
            entries["ask"], entries["ask_why"] = asked
    band = watched.seen if isinstance(watched, Band) else None
    if band is None:
        return Event(**entries)
    return BandEvent(
        **entries,
        image=band.worst,
        levels=band.levels,
        energies_eV=band.energies_eV,
        barrier_eV=band.barrier_eV,
        barrier=band.barrier.level,
    )
