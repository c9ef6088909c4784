"""The probe as a signal."""

from __future__ import annotations

import numpy as np
from builders import mace_calculator, rattled, tiny_probe
from closeness import close

from uqcalc import ReliableCalculator, tap
from uqcalc.signals.base import to_host
from uqcalc.signals.probe import ProbeSignal


def test_probe_signal_is_the_probe():
    atoms = rattled()
    backbone = tap(mace_calculator())
    probe = tiny_probe(backbone)
    prediction = backbone(atoms, ["energy", "forces"])
    reliability, importance = probe([prediction], importance=True)
    [full] = to_host([ProbeSignal(probe)(prediction)])
    [thin] = to_host([ProbeSignal(probe, importance=False)(prediction)])
    close(full.risk, 1 - float(reliability[0]), of=1.0)
    close(thin.risk, full.risk, of=1.0)  # another kernel
    close(full.results["probe_reliability"], 1 - full.risk, of=1.0)
    close(full.per_atom, importance)
    close(full.per_atom.sum(), 1.0)
    assert thin.per_atom is None


def test_elements_the_probe_has_not_seen_are_unreliable_by_name():
    backbone = tap(mace_calculator())
    probe = tiny_probe(backbone, elements=[1, 6], bias=50.0)
    atoms = rattled()
    calc = ReliableCalculator(backbone, probe)
    assessment = calc.assess(atoms)
    assert np.isnan(assessment.reading("probe").risk)
    assert assessment.level == 2
    assert "O" in assessment.verdict.reasons[0]
