"""Scores of a probe on the user's frames, and the files with them."""

import base64
import json
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from builders import mace_calculator, rattled, tiny_probe
from closeness import FLOAT64, NETWORK, close
from probe.toys import ToyBackbone
from sklearn import metrics

from uqcalc import (
    Labels,
    Recipe,
    ReliableCalculator,
    adapt,
    certify,
    evaluate,
    fit,
    tap,
)
from uqcalc.errors import LabelError, LabelWarning, ProbeError
from uqcalc.evaluation import report as reports
from uqcalc.evaluation.cardinfo import card_info
from uqcalc.evaluation.page import render
from uqcalc.evaluation.readings import read_structures
from uqcalc.evaluation.report import findings, report_lines
from uqcalc.probe.calibration import Calibration
from uqcalc.probe.card import Guarantee
from uqcalc.statistics import scores


def labelled(count=24):
    """Frames with errors of 0.02 to 0.2 eV/Å on every force component."""
    calculator = mace_calculator(0)
    rng = np.random.default_rng(0)
    frames = []
    for index, error in enumerate(np.linspace(0.02, 0.2, count)):
        atoms = rattled("CH3OH", seed=index, amount=0.1)
        atoms.calc = calculator
        sign = rng.choice([-1, 1], size=(len(atoms), 3))
        atoms.arrays["REF_forces"] = atoms.get_forces() + error * sign
        atoms.calc = None
        frames.append(atoms)
    return frames


@pytest.fixture(scope="module")
def probe():
    return tiny_probe(tap(mace_calculator(0)), bias=0.1)


def test_scores_compare_the_calculator_with_the_labels(probe, tmp_path):
    frames = labelled()
    result = evaluate(probe, frames, mace_calculator(0))
    close(result.errors, np.linspace(0.02, 0.2, 24), FLOAT64, of=1.0)  # eV/Å, of forces
    live = ReliableCalculator(mace_calculator(0), probe)
    for index in (0, 11, 23):
        live.assess(frames[index])
        expected = live.results["probe_reliability"]
        close(result.probability[index], expected, NETWORK, of=1.0)
    truth = result.errors <= probe.card.boundary
    close(result.report["brier"], np.mean((result.probability - truth) ** 2))
    assert result.report["auroc"] == scores.auroc(truth, result.probability)
    numbers, picture, page = result.write(tmp_path / "my.test", ["labels are few"])
    assert picture.read_bytes()[1:4] == b"PNG"
    assert "labels are few" in page.read_text(encoding="utf-8")
    written = json.loads(numbers.read_text(encoding="utf-8"))
    assert written["warnings"] == ["labels are few"]
    assert written["report"]["brier"] == result.report["brier"]
    assert written["card"]["fingerprint"] == probe.card.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "my.test.html",
        "my.test.json",
        "my.test.png",
    ]


def test_structures_of_unseen_elements_are_counted_and_not_scored():
    probe = tiny_probe(tap(mace_calculator(0)), elements=[1, 6, 8])
    frames = labelled(6)
    ammonia = molecule("NH3")
    ammonia.arrays["REF_forces"] = np.zeros((4, 3))
    result = evaluate(probe, [*frames, ammonia], mace_calculator(0))
    assert result.report["unseen_elements"] == 1
    assert result.report["structures"] == 6
    with pytest.raises(LabelError, match="must be made of the probe's elements"):
        evaluate(probe, [ammonia], mace_calculator(0))


@pytest.fixture(scope="module")
def joined():
    """A default probe on a toy backbone, and frames of which two are far away."""
    frames = spread(150, seed=0)
    recipe = Recipe(epochs=5)
    with pytest.warns(LabelWarning, match="at least 200"):
        probe = fit(
            frames, ToyBackbone(), Labels(group_key="pair", percentile=50), recipe
        ).probe
    far = spread(40, seed=1)
    for atoms in far[:2]:
        atoms.positions *= 0.3
        relabel(atoms, 5.0)
    return probe, far


def spread(count, *, seed):
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        amount = rng.uniform(0.01, 0.3)
        name = ["H2O", "CH3OH", "NH3", "C2H6"][index % 4]
        atoms = rattled(name, seed=1000 * seed + index, amount=amount)
        relabel(atoms, amount)
        atoms.info["pair"] = f"<script>{index // 2} & more</script>"
        frames.append(atoms)
    return frames


def relabel(atoms, error):
    """Shift the reference by ``error`` from the prediction, on every component."""
    sign = np.random.default_rng(len(atoms)).choice([-1, 1], size=(len(atoms), 3))
    atoms.arrays["REF_forces"] = ToyBackbone().calculator.get_forces(atoms) + (
        error * sign
    )


def test_scope_in_the_report_is_that_of_the_verdict(joined):
    probe, frames = joined
    result = evaluate(probe, frames, ToyBackbone())
    live = ReliableCalculator(ToyBackbone(), probe)
    doubts = [live.assess(atoms).readings[0].out_of_scope for atoms in frames]
    # a doubtful atom is a separate doubt, inside and outside
    weak = [any("probe_worst_atom" in d for d in found) for found in doubts]
    expected = [len(d) > w for d, w in zip(doubts, weak, strict=True)]
    assert result.tested.outside.tolist() == expected
    backbone = ToyBackbone()
    assert read_structures(probe, backbone.predict_many(frames)).weak.tolist() == weak
    assert all(doubts[:2])
    assert any(expected[:2])
    assert result.report["outside_scope"] == np.mean(expected)
    boundary, suspect = probe.card.boundary, probe.card.suspect
    trusted = (result.probability >= suspect) & (result.errors > boundary)
    assert result.report["false_trust"] == trusted.sum()
    told = result.report["false_trust_outside"]
    if trusted.any():
        assert told == np.mean(np.array(expected)[trusted])
    else:
        assert np.isnan(told)


def test_false_trust_outside_the_scope(joined):
    """P is near 1 for all structures: only the scope detects the far ones."""
    probe, frames = joined
    sure = probe.with_card(calibration=Calibration(1e-6, 9.0))
    report = evaluate(sure, frames, ToyBackbone()).report
    wrong = evaluate(probe, frames, ToyBackbone()).errors > probe.card.boundary
    outside = evaluate(probe, frames, ToyBackbone()).tested.outside
    assert report["false_trust"] == wrong.sum() > 2
    assert report["false_trust_outside"] == outside[wrong].mean() > 0


def test_atoms_are_scored_by_their_own_errors(joined):
    probe, frames = joined
    report = evaluate(probe, frames[2:], ToyBackbone()).report["atoms"]
    belief, right = [], []
    live = ReliableCalculator(ToyBackbone(), probe)
    for atoms in frames[2:]:
        live.assess(atoms)
        belief.append(live.results["probe_reliabilities"])
        missed = live.results["forces"] - atoms.arrays["REF_forces"]
        right.append(np.linalg.norm(missed, axis=1) <= probe.card.atom_boundary)
    belief, right = np.concatenate(belief), np.concatenate(right)
    assert report["atoms"] == len(right)
    # P of single structures and of batches differs by rounding: two may change order
    pairs = right.sum() * (~right).sum()
    assert abs(report["auroc"] - metrics.roc_auc_score(right, belief)) < 3 / pairs
    ece = scores.expected_calibration_error(right, belief)
    close(report["ece"], ece, of=1.0)


class Page(HTMLParser):
    """Text of a page, its addresses, and whether its tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.shown, self.asked, self.open, self.tags = "", [], [], []
        self.scripts = []
        self.feed(text)
        self.shown = " ".join(self.shown.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.asked += [v for k, v in attrs if k in {"src", "href", "srcset"}]
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        else:
            self.shown += data


def test_page_is_self_contained_and_complete(joined, tmp_path):
    probe, frames = joined
    labels = Labels(group_key="pair", percentile=50)
    result = evaluate(probe, frames, ToyBackbone(), labels)
    text = result.write(tmp_path / "a", ["<script>alert(1)</script>"])[2].read_text(
        encoding="utf-8"
    )
    page = Page(text)
    assert page.open == []
    assert "<script>alert(1)</script>" in page.shown  # as text
    assert len(page.asked) == page.tags.count("img") == 8
    for source in page.asked:
        kind, _, data = source.partition(",")
        assert kind == "data:image/svg+xml;base64"
        ElementTree.fromstring(base64.b64decode(data))
    assert "url(" not in text.partition("<script")[0]
    assert "default-src 'none'" in text  # without the scripts of the viewer
    report = result.report
    worst = int(np.argmax(result.errors))
    for part in (
        f"{report['ece']:.3f}",
        f"noise floor {report['ece_noise_floor']:.3f}",
        f"{report['brier_decomposition']['resolution']:.3f}",
        f"outside the scope {report['outside_scope']:.1%}",
        f"{report['atoms']['auroc']:.3f}",
        "the test set has 40 structures, fewer than 200",
        result.tested.groups[worst],  # "<script>...", as text
        "This probe has no guarantee",
    ):
        assert part in page.shown
    again = result.write(tmp_path / "b")[0]
    assert json.loads(again.read_text(encoding="utf-8"))["warnings"] == []


def test_the_page_shows_the_worst_structures_with_the_errors_of_their_atoms(
    joined, tmp_path, monkeypatch
):
    probe, frames = joined
    result = evaluate(probe, frames, ToyBackbone())
    shown = result.tested.structures
    assert int(np.argmax(result.errors)) in shown
    for row, atoms in shown.items():
        assert atoms == frames[row]
        missed = atoms.arrays["force_error"]
        rms = np.sqrt(np.square(missed).mean() / 3)
        close(rms, result.errors[row], of=result.errors.max())
    monkeypatch.setitem(sys.modules, "chemiscope", None)
    bare = Page(render(result))
    assert bare.scripts == []
    assert "uqcalc[report]" in bare.shown
    monkeypatch.undo()
    pytest.importorskip("chemiscope")
    path = result.write(tmp_path / "a")[2]
    assert path.stat().st_size < 15e6
    page = Page(path.read_text(encoding="utf-8"))
    data = json.loads(page.scripts[1])
    assert [one["size"] for one in data["structures"]] == [*map(len, shown.values())]
    found = data["properties"]["force error of the atom [eV/Å]"]["values"]
    expected = np.concatenate([a.arrays["force_error"] for a in shown.values()])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert page.tags.count("button") == len(shown)


def test_a_probe_of_one_path_has_a_shorter_page(probe, tmp_path):
    result = evaluate(probe, labelled(), mace_calculator(0))
    page = Page(result.write(tmp_path / "a")[2].read_text(encoding="utf-8"))
    assert page.tags.count("img") == 5
    assert "no scope: the limits of its calibration set are unknown" in page.shown
    in_gpa = replace(result, probe=result.probe.with_card(target="stress"))
    shown = Page(render(in_gpa)).shown
    assert "error [GPa]" in shown
    assert f"is {result.report['median_error'] / units.GPa:.3g} GPa" in shown
    assert "share of structures outside" not in page.shown
    assert result.report["atoms"] is None


def test_offsets_of_the_card_are_removed():
    """Labels of another level of theory: 1 eV to each atom of H."""
    card = {"target": "energy", "boundary": 0.5}
    probe = tiny_probe(tap(mace_calculator(0)), offsets={"1": 1.0}, **card)
    calculator, frames = mace_calculator(0), [rattled(seed=s) for s in range(5)]
    for error, atoms in zip(np.linspace(0.1, 0.9, 5), frames, strict=True):
        energy = calculator.get_potential_energy(atoms) + 4.0 + error
        atoms.info["REF_energy"] = energy
    others = {"6": 0.0, "8": 0.0}
    probe = probe.with_card(offsets=probe.card.offsets | others)
    result = evaluate(probe, frames, calculator)
    close(result.errors, np.linspace(0.1, 0.9, 5), FLOAT64)


def test_left_out_frames_are_counted_and_shown(probe, tmp_path):
    frames = labelled(6)
    del frames[0].arrays["REF_forces"], frames[4].arrays["REF_forces"]
    result = evaluate(probe, frames, mace_calculator(0), exclude=("missing",))
    assert result.report["structures"] == 4
    assert result.report["excluded"] == {"missing": 2}
    for shown in (str(result), "\n".join(findings(result.report))):
        assert "left out before scoring: 2 missing" in shown


def test_refuses_another_backbone_and_another_target(probe):
    with pytest.raises(ProbeError, match="must belong to this backbone"):
        evaluate(probe, labelled(3), mace_calculator(1))
    energies = probe.with_card(target="energy")
    with pytest.raises(LabelError, match="offsets=True must have a probe"):
        evaluate(energies, [], mace_calculator(0), Labels("energy", offsets=True))
    with pytest.raises(LabelError, match=r"must be 'forces', .* got 'energy'"):
        evaluate(probe, labelled(3), mace_calculator(0), Labels("energy"))


def test_report_names_problems(joined):
    probe, frames = joined
    report = evaluate(probe, frames, ToyBackbone()).report
    good = report | {
        "structures": 1000,
        "accuracy": 0.9,
        "majority_accuracy": 0.6,
        "auroc": 0.95,
        "ece": 0.031,
        "ece_noise_floor": 0.03,
        "ece_chance": 0.04,
        "groups": 100,
        "prevalence": 0.4,
        "outside_scope": 0.01,
        "right_outside": 0.01,
        "atoms": None,
    }
    assert findings(good) == []
    for change, words in (
        ({"structures": 150}, "the test set has 150 structures"),
        ({"accuracy": 0.6}, "no more accurate than the answer"),
        ({"auroc": np.nan}, "all test structures are of one class"),
        ({"ece": 0.2}, "more than chance explains (ECE 0.200"),
        (
            {"atoms": {"ece": 0.4, "ece_noise_floor": 0.03}},
            "probabilities of single atoms differ",
        ),
        ({"right_outside": 0.4}, "40% of the right structures with a P of RELIABLE"),
        ({"prevalence": 0.02}, "20 of 1000 are reliable"),
        ({"groups": 12}, "12 groups, fewer than 30"),
        ({"unseen_elements": 3}, "3 more structures contain elements"),
    ):
        (found,) = findings(good | change)
        assert words in found


def test_a_score_is_one_row_that_every_renderer_shows(joined, monkeypatch, tmp_path):
    """Terminal, page and card show a new row of the table without another change."""
    probe, frames = joined
    result = evaluate(probe, frames, ToyBackbone())
    new = reports.Score(reports.Part.STRUCTURES, "median_error", "median", "a <b>", 9.0)
    monkeypatch.setattr(reports, "SCORES", (*reports.SCORES, new))
    value = f"{result.report['median_error']:.3f}"
    (line,) = [x for x in report_lines(result.report) if x.startswith("  median")]
    assert line.split() == ["median", value, "chance", "9.000"]
    page = Page(result.write(tmp_path / "a")[2].read_text(encoding="utf-8"))
    assert f"median {value} chance 9.000 a <b>" in page.shown
    card = probe.with_card(report=result.report).card
    assert ("median", f"{value} (chance 9.000)") in card_info(card).rows


def test_score_without_a_value_is_shown_as_not_defined(joined):
    probe, frames = joined
    report = evaluate(probe, frames, ToyBackbone()).report
    for value in (np.nan, None, "high", True):
        shown = {
            row.score.key: str(row)
            for row in reports.score_rows(report | {"auroc": value})
        }
        assert shown["auroc"] == "not defined (chance 0.500)"
    lines = report_lines(report | {"auroc": np.nan, "outside_scope": np.nan})
    assert not [line for line in lines if line.startswith("  outside")]
    assert "  AUROC                       not defined  chance 0.500" in lines
    assert [str(row) for row in reports.score_rows({"f1": 0.25})] == ["0.250"]


def test_another_boundary_is_the_same_probe_with_shifted_log_odds(joined):
    probe, frames = joined
    low, *_, high = probe.card.calibration.boundaries
    middle = float(np.sqrt(low * high))
    found = evaluate(probe, frames, ToyBackbone(), boundary=f"{1000 * middle} meV/Å")
    assert found.probe.card.boundary == pytest.approx(middle)
    predictions = ToyBackbone().predict_many(frames)
    asked = probe.reliability(predictions, boundary=middle).double().numpy()
    close(found.probability, asked, NETWORK, of=1.0)
    right = found.errors <= middle
    close(found.report["prevalence"], right.mean())
    back = found.probe.at(probe.card.boundary)
    again = back.reliability(predictions).double().numpy()
    close(again, probe.reliability(predictions).double().numpy(), NETWORK, of=1.0)
    with pytest.raises(ProbeError, match="boundary must lie between"):
        evaluate(probe, frames, ToyBackbone(), boundary=10 * high)
    text = probe.at(f"{1000 * middle} meV/angstrom").card.boundary
    assert text == pytest.approx(middle)
    with pytest.raises(LabelError, match="must be a force"):
        probe.at("50 meV")
    for function in (adapt, certify, evaluate):
        with pytest.raises(TypeError, match=r"must be a Probe, got str; .*Probe\.load"):
            function("my.probe", frames, ToyBackbone())


def test_report_states_whether_probability_and_guarantee_hold(joined):
    probe, frames = joined
    worse = [atoms.copy() for atoms in frames]
    for atoms in worse:
        relabel(atoms, 5.0)
    sure = probe.with_card(
        promise=Guarantee(
            0.05, 0.1, 0.95, 100, 90, 1, 0.05, probe.card.boundary, "eV/Å",
            probe.card.boundary,
        ).to_dict()
    )  # fmt: skip
    for rows, fails in ((frames, False), (worse, True)):
        report = evaluate(sure, rows, ToyBackbone()).report
        text = " ".join(findings(report))
        assert ("P does not hold on these frames: 0% of" in text) == fails
        assert ("the guarantee of the card does not hold" in text) == fails
    assert report["guarantee"]["wrong"] == report["guarantee"]["accepted"] > 0
    assert evaluate(probe, frames, ToyBackbone()).report["guarantee"] is None
