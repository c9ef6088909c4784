"""Objects in a terminal and in a notebook: a line, and a small table."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np
from ase import units
from ase.md.verlet import VelocityVerlet
from builders import tiny_probe
from probe.toys import ToyBackbone
from toys import BAD, GOOD, copper, watched

from uqcalc import Level, Monitor
from uqcalc.evaluation import evaluation
from uqcalc.htmltable import html_table
from uqcalc.types import Assessment, Evaluation, Reading, Verdict


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.opened, self.closed, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.opened.append(tag)

    def handle_endtag(self, tag):
        self.closed.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def shown(thing):
    """Return the line and the texts of the table, which must be well formed."""
    parsed = Tags()
    parsed.feed(thing._repr_html_())
    assert sorted(parsed.opened) == sorted(parsed.closed)
    assert set(parsed.opened) == {"table", "caption", "tbody", "tr", "th", "td"}
    line = repr(thing)
    assert line.startswith(f"<{type(thing).__name__} ")
    assert len(line) < 400
    assert "\n" not in line
    return line, parsed.text


def test_texts_are_escaped():
    evil = "<script>alert('x')</script> & \"y\""
    assert "<script>" not in html_table(evil, [(evil, evil)])
    verdict = Verdict(Level.SUSPECT, (evil,))
    found = Assessment((Reading("probe", 0.5, "eV"),), verdict)
    assert "<script>" not in found._repr_html_()
    assert evil in "".join(shown(found)[1])


def test_calculator_and_monitor_are_shown_without_a_pass():
    atoms = watched([GOOD], after=BAD)
    calculator = atoms.calc
    line, _ = shown(calculator)
    assert calculator.backbone.passes == 0
    assert "signals: scripted sanity flags" in line
    assert "last level: none" in line
    dynamics = VelocityVerlet(atoms, 1 * units.fs)
    monitor = Monitor(dynamics, patience=1)
    assert "0 RELIABLE" in shown(monitor)[0]
    dynamics.run(4)
    assert "last level: UNRELIABLE" in shown(calculator)[0]
    assert "halted: UNRELIABLE at step 1" in shown(monitor)[0]
    line, texts = shown(monitor.last)
    reason, risks = "scripted: risk 1 eV > 0.7 eV", "scripted 1 eV, sanity 0, flags 0"
    assert line == f"<Assessment UNRELIABLE: {reason} (risks: {risks})>"
    assert "risk of scripted" in texts
    calculator.enabled = False
    assert "judged: not enabled" in shown(calculator)[0]
    assert calculator.check_state(copper())


def test_a_probe_and_an_evaluation_name_the_boundary():
    probe = tiny_probe(ToyBackbone())
    line, texts = shown(probe)
    assert "P(RMS force error <= 100 meV/Å)" in line
    assert probe.card.fingerprint in texts
    tested = evaluation.Tested([], [], np.zeros(3, bool))
    report = {"auroc": 0.75, "ece": None, "spearman": 0.5}
    found = Evaluation(probe, report, np.zeros(3), np.zeros(3), tested)
    line, _ = shown(found)
    assert "structures: 3, AUROC: 0.750, Spearman: 0.500" in line
