"""Former names of attributes and arguments work like the new ones, and warn."""

from dataclasses import replace

import pytest
from builders import tiny_probe
from probe.toys import ToyBackbone

from uqcalc import Policy, Threshold
from uqcalc.signals.probe import ProbeSignal
from uqcalc.types import Guarantee


GUARANTEE = Guarantee(0.8, 0.1, 0.95, 100, 60, 2, 0.09, 0.1, "eV/Å", 0.1)


@pytest.fixture
def probe():
    return tiny_probe(ToyBackbone(6), promise=GUARANTEE.to_dict())


def former(owner, old, new):
    with pytest.warns(DeprecationWarning, match=rf"\.{old} is now \w+\.{new}; .* 0\.3"):
        return getattr(owner, old)


def test_former_attributes_of_a_guarantee(probe):
    assert former(probe.card, "promised", "guarantee") == GUARANTEE
    policy = probe.card.guarantee_policy()
    assert former(probe.card, "promise_policy", "guarantee_policy")() == policy
    assert former(Policy, "from_promise", "from_guarantee")(probe) == policy
    assert former(ProbeSignal(probe), "promise", "guarantee") == GUARANTEE
    text = policy.thresholds[0].guarantee
    assert text == probe.card.meaning
    assert former(policy.thresholds[0], "promise", "guarantee") == text


def test_a_former_argument_warns_and_the_new_one_does_not():
    new = Threshold("probe", 0.2, 0.5, guarantee="P")
    assert replace(new, suspect=0.1).guarantee == "P"
    with pytest.warns(DeprecationWarning, match=r"Threshold\(promise=\) is now"):
        assert Threshold("probe", 0.2, 0.5, promise="P") == new


def test_the_key_in_files_stays(probe):
    policy = probe.card.guarantee_policy()
    [row] = policy.to_dict()["thresholds"]
    assert row["promise"] == policy.thresholds[0].guarantee
    assert "guarantee" not in row
    assert Policy.from_dict(policy.to_dict()) == policy
    assert probe.card.to_dict()["promise"]["cutoff"] == GUARANTEE.cutoff
