"""One reading of a probe for a whole batch equals the readings of single structures."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule

import uqcalc
from uqcalc import annotate
from uqcalc.probe.probe import Probe
from uqcalc.probe.stacked import PATHS
from uqcalc.records import Level
from uqcalc.signals.probe import ProbeSignal


NAMES = ("H2O", "C6H6", "CH3CH2OH", "CH4", "SiH4", "C2H2", "NH3")


@pytest.fixture(scope="module")
def frames():
    found = [molecule(name) for name in NAMES]
    for seed, atoms in enumerate(found):
        atoms.rattle(0.08, seed=seed)
    return found


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("atoms", [None, [0, 2]])
def test_a_batch_is_judged_as_its_structures(frames, importance, atoms):
    bare = uqcalc.default_calculator()
    [known] = [s.probe for s in bare.signals if isinstance(s, ProbeSignal)]
    signals = [ProbeSignal(known, importance=importance, atoms=atoms)]
    calc = uqcalc.ReliableCalculator(bare.backbone, signals=signals)
    wanted = calc.wanted()
    sound = [a for a in frames if not known.unseen_elements(a.numbers)]
    assert len(sound) == len(frames) - 1  # silicon has no labels
    predictions = calc.backbone.predict_many(sound, wanted)
    # the potential accepts the element
    strange = predictions[0].own()
    strange.numbers[0] = 14
    predictions = [*predictions, strange]
    single = [calc.judge(prediction) for prediction in predictions]
    batch = calc.judge_each(predictions)
    assert batch[-1].verdict.level is Level.UNRELIABLE
    for one, other in zip(single, batch, strict=True):
        assert other.verdict.level is one.verdict.level
        mine, theirs = one.results(), other.results()
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            # log-odds are sums of thousands of terms in single precision
            near = 1e-3 if key.removeprefix("probe_") in PATHS else 2e-5
            np.testing.assert_allclose(
                theirs[key], value, rtol=2e-4, atol=near, err_msg=key
            )


def test_a_probe_is_read_once_for_a_batch(frames, monkeypatch):
    calc = uqcalc.default_calculator()
    sizes, plain = [], Probe.read

    def counted(self, predictions, **options):
        sizes.append(len(predictions))
        return plain(self, predictions, **options)

    monkeypatch.setattr(Probe, "read", counted)
    sound = [atoms for atoms in frames if 14 not in atoms.numbers]
    found = list(annotate(sound, calc, batch_atoms=1000))
    assert sizes[0] == len(sound)
    # other calls compute the importance of verdicts that are not RELIABLE
    bad = sum(atoms.info["reliability_level"] > 0 for atoms in found)
    assert sizes[1:] == [1] * (len(sizes) - 1)
    assert len(sizes) - 1 <= bad
