"""The regime in a verdict: validated, not validated, or no labels."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from probe.toys import ToyBackbone

from uqcalc.annotating.copies import annotated_copy, read_assessment
from uqcalc.backbones.prediction import Prediction, geometry
from uqcalc.evaluation.riskcontrol import risk_bound
from uqcalc.policy import Policy, Threshold
from uqcalc.probe.card import Card, Guarantee, RegimeCount
from uqcalc.probe.validity import regime_states
from uqcalc.records import Assessment
from uqcalc.signals.base import to_host
from uqcalc.signals.flags import Flags


LABELLED = ["near-equilibrium", "relaxed", "hot", "strained"]


def card(target="forces", *, counts=None, labelled=LABELLED):
    """Return a card; ``counts`` are (accepted, wrong) for each regime."""
    made = None
    if counts is not None:
        rows = {
            name: RegimeCount(n, n, wrong, risk_bound(wrong, n, 0.95))
            for name, (n, wrong) in counts.items()
        }
        made = Guarantee(
            0.8, 0.1, 0.95, 99, 80, 2, 0.09, 0.2, "eV/Å", 0.2, regimes=rows
        ).to_dict()
    return Card(
        fingerprint="toy:0",
        target=target,
        boundary=0.2,
        architecture="standard",
        shape={"features": 3, "charges": False},
        elements=[29],
        sizes=[1, 9],
        promise=made,
        training={"regimes_by_rule": list(labelled)},
    )


def test_the_state_of_each_regime_is_that_of_the_card():
    counted = card(counts={"near-equilibrium": (80, 2), "hot": (8, 1)})
    states = regime_states([counted])
    for name, text in {
        "near-equilibrium": "validated to 0.2 eV/Å (90 % right)",
        "hot": "not validated (1 wrong of 8 accepted groups)",
        "relaxed": "not validated (no accepted group)",
        "reactive": "no labels",
    }.items():
        assert states[name] == f"{name}: {text}"
    both = regime_states([counted, card("stress", labelled=["hot"])])
    assert both["near-equilibrium"] == (
        "near-equilibrium: forces validated to 0.2 eV/Å (90 % right), stress no labels"
    )
    assert both["hot"].endswith("groups), stress not validated (no guarantee)")
    assert "on average" in regime_states([card(counts={})])["hot"]
    assert regime_states([]) == regime_states([card(labelled=[])]) == {}


@pytest.mark.parametrize(
    ("cards", "said"),
    [
        ([card(counts={"relaxed": (80, 2)})], "relaxed: validated to 0.2 eV/Å"),
        ([card(labelled=["hot"])], "relaxed: no labels"),
        ([card(labelled=[])], ""),
        ([], ""),
    ],
)
def test_a_single_verdict_names_its_regime(cards, said):
    atoms = bulk("Cu", cubic=True)
    atoms.calc = EMT()
    prediction = Prediction(
        **geometry(atoms),
        results={},
        energy=0.0,
        forces=np.zeros((4, 3)),
        features=torch.zeros(4, 1),
    )
    reading = to_host([Flags.of(ToyBackbone(), cards)(prediction)])[0]
    found = Assessment((reading,), Policy([Threshold("flags", 1.0, 2.0)])([reading]))
    assert found.regime.startswith(said)
    assert bool(found.regime) is bool(said)
    assert (f"regime {found.regime}" in str(found)) is bool(said)
    again = read_assessment(annotated_copy(atoms, found, {}))
    assert again.regime == found.regime
