"""`certify` end to end: the guarantee on the card follows from the frames."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from ase.io import read, write
from builders import rattled
from closeness import NETWORK, close
from probe.toys import ToyBackbone

from uqcalc import (
    Labels,
    Level,
    Policy,
    Probe,
    Recipe,
    ReliableCalculator,
    annotated_copy,
    certify,
    fit,
    read_assessment,
)
from uqcalc.errors import LabelError, LabelWarning, ProbeError
from uqcalc.evaluation.cardinfo import card_info
from uqcalc.evaluation.guarantee import (
    acceptance,
    certify_dataset,
    probability_boundary,
)
from uqcalc.evaluation.riskcontrol import risk_bound
from uqcalc.labels.dataset import build_dataset
from uqcalc.probe.card import RegimeCount
from uqcalc.probe.seen import Seen, group_hash
from uqcalc.probe.validity import validity
from uqcalc.records import Assessment, Reading, key_of
from uqcalc.signals import base
from uqcalc.types import Guarantee


NAMES = ["H2O", "CH3OH", "NH3", "C2H6"]
LOOSE = {"risk": 0.3, "confidence": 0.9}
OWN = Labels(group_key="own")  # each frame is a group, with a warning


def labelled(count, *, seed):
    """RMS force error = amount of distortion / 2."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        amount = rng.uniform(0.01, 0.3)
        atoms = rattled(NAMES[index % 4], seed=1000 * seed + index, amount=amount)
        atoms.calc = ToyBackbone().calculator
        noise = rng.normal(size=(len(atoms), 3))
        noise *= amount / 2 / np.sqrt(np.mean(noise**2))
        atoms.arrays["REF_forces"] = atoms.get_forces() + noise
        atoms.calc = None
        atoms.info["pair"] = f"{seed} {index // 2}"
        atoms.info["own"] = f"{seed} {index}"
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def probe():
    sets = [labelled(n, seed=s) for n, s in ((160, 0), (60, 1), (60, 2))]
    train, held, test = sets
    recipe = Recipe(epochs=3)
    with pytest.warns(LabelWarning, match="4 compositions and no group_key"):
        return fit(train + held, ToyBackbone(), recipe=recipe, test=test).probe


def test_the_guarantee_is_what_counting_by_hand_gives(probe, tmp_path):
    frames = labelled(120, seed=3)
    promised = certify(probe, frames, ToyBackbone(), OWN, tolerance="90 meV/Å", **LOOSE)
    found = Guarantee.from_dict(promised.card.promise)
    assert (found.tolerance, found.unit, found.risk) == (0.09, "eV/Å", 0.3)
    assert found.boundary == 0.09
    assert "P(error <= 0.09 eV/Å) at least" in str(found)
    data = build_dataset(frames, ToyBackbone(), Labels())
    kept = acceptance(probe, data, 0.09) >= found.cutoff
    assert (found.groups, found.accepted) == (120, kept.sum())
    assert found.wrong == np.sum(data.errors[kept] > 0.09)
    assert found.bound <= 0.3
    assert 0 < found.coverage < 1
    loaded = Probe.load(promised.save(tmp_path / "my.probe"))
    assert Guarantee.from_dict(loaded.card.promise) == found
    assert probe.card.promise is None  # the old probe has no guarantee
    at_boundary = certify(probe, frames, ToyBackbone(), OWN, **LOOSE).card.promise
    assert at_boundary["tolerance"] == probe.card.boundary
    grouped = certify(probe, frames, ToyBackbone(), Labels(group_key="pair"), **LOOSE)
    assert grouped.card.promise["groups"] == 60


def test_elements_that_the_labels_lacked_are_never_accepted(probe):
    frames = labelled(8, seed=4)
    for atoms in frames[::2]:
        atoms.numbers[0] = 9
    data = build_dataset(frames, ToyBackbone(), Labels())
    refused = np.isnan(acceptance(probe, data, 0.1))
    assert refused[::2].all()
    assert not refused.all()


def test_structures_outside_the_scope_are_never_accepted(probe):
    """For any probability, because the verdict is at least SUSPECT."""
    frames = labelled(30, seed=6)
    for atoms in frames[::3]:
        atoms.positions *= 0.25  # far from most labels
    frames[1].set_cell([4, 4, 4])
    frames[1] = frames[1].repeat((3, 3, 1))  # more atoms than twice the largest
    frames[1].set_cell(None)
    frames[1].arrays["REF_forces"] = np.zeros((len(frames[1]), 3))
    data = build_dataset(frames, ToyBackbone(), Labels())
    live = ReliableCalculator(ToyBackbone(), probe)
    outside = [bool(live.assess(a).readings[0].out_of_scope) for a in frames]
    assert outside[1]
    assert 3 < sum(outside) < 25
    found = acceptance(probe, data, probe.card.boundary)
    np.testing.assert_array_equal(np.isnan(found), outside)


def test_the_probability_is_that_of_the_tolerance_where_labels_covered_it(probe):
    data = build_dataset(labelled(20, seed=7), ToyBackbone(), Labels())
    known = probe.card.calibration.boundaries
    low, high = known[0], known[-1]
    own = acceptance(probe, data, probe.card.boundary)
    middle = (probe.card.boundary + high) / 2
    scored = ~np.isnan(own)
    expected = probe.reliability(data.predictions, boundary=middle).numpy()
    at_middle = acceptance(probe, data, middle)
    close(at_middle[scored], expected[scored], NETWORK)
    assert np.all(at_middle[scored] > own[scored])
    for uncovered in (low / 2, high * 2):
        np.testing.assert_array_equal(acceptance(probe, data, uncovered), own)
        assert probability_boundary(probe, uncovered) == probe.card.boundary


def test_frames_and_groups_of_the_fit_are_refused(probe, tmp_path):
    """Frames and groups of the fit, also after a file; other frames are accepted."""
    frames = labelled(120, seed=8)
    own = labelled(160, seed=0)[:27]
    for atoms in own:
        atoms.positions += 1e-7
    loaded = Probe.load(probe.save(tmp_path / "my.probe"))
    with pytest.raises(LabelError, match=r"147 frames .* got 27 of its own .frames 0,"):
        certify(loaded, own + frames, Untouched(), OWN)
    grouped = probe.with_seen(
        replace(probe.seen, groups=np.array([group_hash("pair", "8 5")]))
    )
    with pytest.raises(LabelError, match=r"1 of its groups by 'pair' .group '8 5'"):
        certify(grouped, frames, Untouched(), Labels(group_key="pair"))
    # an existing dataset is checked, too
    data = build_dataset(own, ToyBackbone(), OWN)
    exact = probe.with_seen(replace(probe.seen, geometries=data.geometries))
    with pytest.raises(LabelError, match="got 27 of its own"):
        certify_dataset(exact, data)
    # not the test frames; for probes of earlier versions this is not known
    assert not probe.seen.frames(labelled(60, seed=2), range(60))
    with pytest.warns(LabelWarning, match="this probe does not list them"):
        certify(probe.with_seen(Seen.nothing()), frames, ToyBackbone(), OWN, **LOOSE)
    with pytest.warns(LabelWarning, match="120 frames have 4 compositions"):
        certify(probe, frames, ToyBackbone(), **LOOSE)
    by_pair = probe.with_card(training=probe.card.training | {"group_key": "pair"})
    with pytest.warns(LabelWarning, match="these frames have 'pair'"):
        certify(by_pair, frames, ToyBackbone(), **LOOSE)


@pytest.fixture(scope="module")
def promises(probe):
    """Guarantees at the boundary of the probe, and at another tolerance."""
    frames = labelled(120, seed=3)
    return [
        certify(probe, frames, ToyBackbone(), OWN, tolerance=wanted, **LOOSE)
        for wanted in (None, "90 meV/Å")
    ]


def test_guarantee_in_a_run_is_that_of_the_certification(
    promises, tmp_path, monkeypatch
):
    """Also in the verdict, after reading from a file, and in one transfer a step."""
    promised = promises[1]
    frames = labelled(120, seed=3) + labelled(9, seed=6)
    for atoms in frames[120::3]:
        atoms.numbers[0] = 9  # unseen
    for atoms in frames[121::3]:
        atoms.positions *= 0.25  # far from most labels
    frames[-1].set_cell([4, 4, 4])
    frames[-1] = frames[-1].repeat((3, 3, 1))  # more atoms than twice the largest
    frames[-1].set_cell(None)
    frames[-1].arrays["REF_forces"] = np.zeros((len(frames[-1]), 3))
    data = build_dataset(frames, ToyBackbone(), Labels())
    found = promised.card.guarantee
    counted = acceptance(promised, data, 0.09) >= found.cutoff
    assert counted[:120].sum() == found.accepted
    policy = Policy.from_guarantee(promised)
    assert Policy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy
    fetched = []
    real = base.fetch

    def counting(tensors):
        fetched.extend([1] if tensors else [])
        return real(tensors)

    monkeypatch.setattr(base, "fetch", counting)
    calc = ReliableCalculator(ToyBackbone(), promised, policy=policy)
    live = [calc.assess(atoms) for atoms in frames]
    assert len(fetched) == len(frames)
    said = [a.results()["probe_promised"] for a in live]
    assert {type(one) for one in said} == {bool}
    np.testing.assert_array_equal(said, counted)
    sound = [
        a.reading(name).floor is Level.RELIABLE
        for a in live
        for name in ("sanity", "flags")
    ]
    sound = np.reshape(sound, (-1, 2)).all(axis=1)
    reliable = [a.level is Level.RELIABLE for a in live]
    np.testing.assert_array_equal(reliable, counted & sound)
    at_tolerance = [a.results()["probe_tolerance_reliability"] for a in live]
    expected = promised.reliability(data.predictions, boundary=0.09).numpy()
    close(np.array(at_tolerance), expected, NETWORK)
    for atoms, assessment in zip(frames[::10], live[::10], strict=True):
        path = tmp_path / "frame.xyz"
        write(path, annotated_copy(atoms, assessment, {}))
        assert policy(read_assessment(read(path)).readings) == assessment.verdict


def test_outside_the_guarantee_is_suspect_with_a_reason(promises, monkeypatch):
    frames = labelled(40, seed=3)
    own, wide = (promised.with_card(unreliable=0.02) for promised in promises)
    meaning = r"P\(RMS force error <= [\d.]+ meV/Å\) = [\d.]+ < [\d.]+"
    for promised in (own, wide):
        calc = ReliableCalculator(
            ToyBackbone(), promised, policy=Policy.from_guarantee(promised)
        )
        live = [calc.assess(atoms) for atoms in frames]
        outside = [a for a in live if not a.results()["probe_promised"]]
        assert Level.SUSPECT in {a.level for a in outside}
        for assessment in outside:
            assert assessment.level is not Level.RELIABLE
            reasons = "; ".join(assessment.verdict.reasons)
            assert re.match(f"probe: {meaning}, outside the guarantee", reasons) or (
                "outside its calibration" in reasons
            )
    assert (
        "probe_tolerance_reliability"
        not in ReliableCalculator(ToyBackbone(), own).assess(frames[0]).results()
    )
    # NaN is not covered: a failed pass, and a pass that did not run
    run = calc.backbone.calculator.calculate

    def broken(*given):
        run(*given)
        calc.backbone.calculator.results["forces"][0] = np.nan

    monkeypatch.setattr(calc.backbone.calculator, "calculate", broken)
    calc.reset()
    for assessment in (calc.assess(frames[0]), calc.refusal("no answer")):
        assert assessment.results()["probe_promised"] is False
        assert np.isnan(assessment.results()["probe_tolerance_reliability"])
        assert assessment.level is Level.UNRELIABLE


def test_a_policy_of_a_guarantee_is_that_of_its_probe(probe, promises):
    own, wide = promises
    with pytest.raises(ProbeError, match="must have a guarantee about its probability"):
        Policy.from_guarantee(probe)
    for other in (probe, own):
        with pytest.raises((ProbeError, ValueError), match="guarantee"):
            ReliableCalculator(ToyBackbone(), other, policy=Policy.from_guarantee(wide))
    # the usual policy gives the same verdict as without a guarantee
    calc, bare = (
        ReliableCalculator(ToyBackbone(), wide),
        ReliableCalculator(ToyBackbone(), probe),
    )
    for atoms in labelled(10, seed=3):
        assert calc.assess(atoms).verdict == bare.assess(atoms).verdict
    with pytest.raises(ProbeError, match="entry 'cutoff' of guarantee of a probe"):
        Guarantee.from_dict(wide.card.promise | {"cutoff": "0.9"})
    with pytest.raises(ProbeError, match="must be from 0 to 1"):
        Guarantee.from_dict(wide.card.promise | {"cutoff": 9.0})


def test_a_guarantee_of_the_stress_counts_where_the_cell_moves(promises):
    own, wide = promises
    stress = wide.with_card(target="stress")
    policy = Policy.from_guarantee(own, stress=stress)
    assert policy.thresholds == Policy.from_guarantee(own).thresholds
    assert policy.signals_for("moving_cell") == ("probe", "probe_stress")
    assert "stress" in policy.moving_cell[0].guarantee
    backbone = ToyBackbone()
    backbone.provides |= {"stress"}
    calc = ReliableCalculator(backbone, [own, stress], policy=policy)
    assert calc.policy == policy
    inside, outside = (
        Reading(
            name,
            0.0,
            results={key_of(name, "promised"): promised},
        )
        for name, promised in (("probe", True), ("probe_stress", False))
    )
    found = Assessment((inside, outside), policy((inside, outside)))
    assert found.level is Level.RELIABLE
    assert policy.for_use(found, "moving_cell").level is Level.SUSPECT
    with pytest.raises(ValueError, match="stress must be a probe of the target 'str"):
        Policy.from_guarantee(own, stress=wide)


class Untouched(ToyBackbone):
    def predict_many(self, frames, wanted=("energy", "forces")):
        raise AssertionError


def test_defects_are_left_out_on_request(probe):
    frames = labelled(120, seed=3)
    expected = certify(probe, frames[1:], ToyBackbone(), OWN, **LOOSE).card.promise
    del frames[0].arrays["REF_forces"]
    with pytest.raises(LabelError, match=r"missing: 1 \(frames 0\)"):
        certify(probe, frames, ToyBackbone(), OWN, **LOOSE)
    left_out = certify(probe, frames, ToyBackbone(), OWN, exclude=["missing"], **LOOSE)
    assert left_out.card.promise == expected


def test_unsuitable_frames_are_refused_before_any_prediction(probe):
    frames = labelled(120, seed=5)
    with pytest.raises(LabelError, match=r"at least 59 groups .* got 58"):
        certify(probe, frames[:58], Untouched())
    with pytest.raises(LabelError, match="tolerance for the target 'forces' must be"):
        certify(probe, frames, Untouched(), tolerance="1 kcal/mol")
    offsets = Labels("energy", offsets=True)
    with pytest.raises(LabelError, match="offsets=True must have a probe"):
        certify(probe.with_card(target="energy"), frames, Untouched(), offsets)
    with pytest.raises(LabelError, match="target of the labels must be 'forces'"):
        certify(probe, frames, Untouched(), Labels("energy"))
    with pytest.raises(ProbeError, match="must belong to this backbone"):
        certify(probe, frames, Untouched(identity="toy:1"))
    few = [atoms.copy() for atoms in frames[:4]]
    del few[0].arrays["REF_forces"]
    del few[3].info["pair"]
    with pytest.raises(LabelError, match="frame 3 must have the group key 'pair'"):
        certify(probe, few, Untouched(), Labels(group_key="pair"), exclude=["missing"])
    with pytest.raises(LabelError, match="frames must be a list of Atoms"):
        certify(probe, "frames.xyz", Untouched())
    walk = np.cumsum(np.random.default_rng(0).normal(0, 0.02, (120, 3, 3)), axis=0)
    run = [frames[0].copy() for _ in walk]
    for atoms, away in zip(run, walk, strict=True):
        atoms.positions += away
    with pytest.raises(LabelError, match="must be independent where no group_key"):
        certify(probe, run, Untouched())


def test_each_regime_with_enough_groups_is_validated_by_itself(probe):
    frames = labelled(200, seed=9)
    for index, atoms in enumerate(frames):
        atoms.info["regime"] = "warm" if index % 2 else "reactive"
        atoms.info["temperature_K"] = 500.0 if index % 4 else 300.0
        if index % 2 == 0:  # right in one regime, wrong in most of the other
            atoms.arrays["REF_forces"] = atoms.arrays["REF_forces"] + 5.0
    easy = probe.with_card(suspect=0.6)
    loose = {"risk": 0.6, "confidence": 0.9}
    certified = certify(easy, frames, ToyBackbone(), OWN, tolerance=0.15, **loose)
    made = certified.card.guarantee
    assert set(made.regimes) == {"warm", "reactive"}
    data = build_dataset(frames, ToyBackbone(), Labels())
    kept = acceptance(probe, data, 0.15) >= 0.6
    for start, name in enumerate(("reactive", "warm")):
        mine = kept[start::2]
        row = made.regimes[name]
        assert (row.groups, row.accepted) == (100, mine.sum())
        assert row.wrong == np.sum(data.errors[start::2][mine] > 0.15)
        assert row.bound == risk_bound(row.wrong, row.accepted, 0.9)
    assert set(made.validated) == {"warm"}
    assert set(made.regimes["warm"].elements) == {1, 6, 8}  # no N there
    said = validity(certified.card)
    assert said.startswith(
        "validated to 0.15 eV/Å (40 % right, P >= 0.6) on warm of C H O up to 500 K; "
        "not validated on bond breaking ("
    )
    for kind in ("near-equilibrium structures", "surfaces", "ions", "metals"):
        assert kind in said.split("; ")[1]
    assert ("valid", said) in card_info(certified.card).rows
    again = Guarantee.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    calc = ReliableCalculator(ToyBackbone(), certified)
    assert calc.validity == said
    assert said in repr(calc)


def test_validity_claims_only_results_on_the_card(probe, promises):
    assert validity(probe.card).startswith("not validated: the card has no guarantee")
    own = promises[0].card
    entries = {k: v for k, v in own.promise.items() if k != "regimes"}
    earlier = replace(own, promise=entries)  # of an earlier version
    assert "on average over the structures" in validity(earlier)
    assert "not by regime" in validity(earlier)
    row = RegimeCount(58, 58, 0, risk_bound(0, 58, 0.95), [1, 6], None)
    enough = RegimeCount(59, 59, 0, risk_bound(0, 59, 0.95), [1, 6, 29], 600.0)
    made = replace(own.guarantee, risk=0.05, confidence=0.95, regimes={"hot": row})
    few = replace(own, promise=made.to_dict())
    assert "in no regime by itself: hot structures (0 wrong of 58" in validity(few)
    for rows, said in [
        ({"hot": enough}, "on hot structures of C Cu H up to 600 K; not validated"),
        ({"hot": enough, "cluster": replace(enough, temperature_K=None)},
         "on hot structures, clusters of C Cu H; not validated"),
    ]:  # fmt: skip
        card = replace(own, promise=replace(made, regimes=rows).to_dict())
        assert said in validity(card)
        assert "metals" not in validity(card)
