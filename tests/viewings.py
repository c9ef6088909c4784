"""A small run on disk for the tests of views: a log, and flagged frames."""

from __future__ import annotations

import numpy as np
from ase.build import molecule

from uqcalc.annotating.copies import annotated_copy
from uqcalc.annotating.frames import append_frame
from uqcalc.records import Assessment, Event, Level, Reading, Verdict
from uqcalc.watching.eventlog import EventLog


NASTY = "<script>window.bad = 1</script>&\"'"
RUN = {
    "formula": "COH4",
    "dynamics": "VelocityVerlet",
    "timestep_fs": 0.5,
    "signals": ["probe"],
    "policy": {"thresholds": [{"signal": "probe", "suspect": 0.2, "unreliable": 0.5}]},
}


def event(step, p, reasons=()):
    level = Level.RELIABLE if p >= 0.8 else Level.SUSPECT if p >= 0.5 else Level(2)
    return Event(
        step=step,
        time_fs=0.5 * step,
        temperature_K=300.0 + step % 7,
        energy_eV=-10.0,
        level=level,
        readings={"probe": 1 - p},
        values={"probe_reliability": p, "probe_novelty": 1.5 - p},
        reasons=reasons,
        worst_atoms=(1, 0),
    )


def write_log(path, chances, *, halt="", start=0, run=RUN):
    """Write a log with one step for each P; return it, open for more."""
    log = EventLog(path, {"run": run, "versions": {}}, "new")
    for step, p in enumerate(chances, start=start):
        log.write(event(step, p, (f"P is {p:.2f}",) if p < 0.8 else ()).to_dict())
    if halt:
        last = start + len(chances) - 1
        log.write({"event": "end", "how": "halted", "step": last, "reason": halt})
    return log


def frame(step, p, rng):
    """An annotated frame of methanol whose oxygen is the least reliable atom."""
    return annotated(molecule("CH3OH"), step, p, rng)


def annotated(structure, step, p, rng):
    """An annotated frame, rattled; its second atom is the least reliable one."""
    atoms = structure.copy()
    atoms.rattle(0.02, rng=rng)
    each = np.full(len(atoms), 0.5 + p / 2)
    each[1] = p
    results = {
        "probe_reliability": p,
        "probe_reliabilities": each,
        "probe_importance": np.full(len(atoms), 1 / len(atoms)),
    }
    reading = Reading("probe", 1 - p, results=results, per_atom_key="probe_importance")
    found = annotated_copy(
        atoms,
        Assessment((reading,), Verdict(event(step, p).level)),
        {"energy": -10.0, "forces": np.zeros((len(atoms), 3))},
    )
    found.info["step"] = step
    return found


def chances(steps):
    """P along a run: three dips, and a fall at the end."""
    x = np.arange(steps)
    p = 0.97 - 0.6 * sum(np.exp(-(((x - c) / 4) ** 2)) for c in (150, 400, 650))
    p[-30:] = np.linspace(0.9, 0.05, 30)
    return p


def write_run(folder, name="run", steps=800, *, halt="25 of 50 frames UNRELIABLE"):
    """Write ``NAME.jsonl`` and ``NAME_flagged.xyz``; return the path of the log."""
    rng = np.random.default_rng(0)
    values = chances(steps)
    write_log(folder / f"{name}.jsonl", values, halt=halt)
    for step in [*range(0, steps, 40), *np.flatnonzero(values < 0.5)]:
        shown = frame(int(step), float(values[step]), rng)
        append_frame(folder / f"{name}_flagged.xyz", shown)
    return folder / f"{name}.jsonl"
