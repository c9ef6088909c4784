"""Reports: self-contained, with the right numbers, and safe against foreign text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from ase.build import molecule
from typer.testing import CliRunner
from viewings import NASTY, chances, event, frame, write_log, write_run

import uqcalc
from uqcalc.annotating.frames import append_frame
from uqcalc.cli import app
from uqcalc.errors import MissingExtraError, RecordError
from uqcalc.plotting import Track
from uqcalc.viewing.frames import atom_image
from uqcalc.viewing.gathering import gather
from uqcalc.viewing.maps import map_of
from uqcalc.viewing.motifs import MotifCounts, motifs_of
from uqcalc.viewing.sources import beside, runs_of
from uqcalc.viewing.words import next_steps, verdict


pytest.importorskip("plotly")
pytest.importorskip("chemiscope")


class Page(HTMLParser):
    """The scripts, addresses and visible text of a page."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.addresses, self.data, self.words = [], [], {}, []
        self._inside = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.addresses += [v for k, v in attrs if k in {"src", "href"}]
        if tag in {"script", "style"}:
            is_data = given.get("type") == "application/json"
            self._inside = given.get("id", "") if is_data else tag
            self.scripts += [""] if tag == "script" else []

    def handle_endtag(self, tag):
        if tag in {"script", "style"}:
            self._inside = None

    def handle_data(self, text):
        if self._inside is None:
            self.words.append(text)
        elif self._inside not in {"script", "style"}:
            self.data[self._inside] = self.data.get(self._inside, "") + text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("run")
    write_run(made)
    return made


@pytest.fixture(scope="module")
def page(folder):
    written = uqcalc.write_report(folder / "run.jsonl", folder / "report.html")
    return Page(written.read_text(encoding="utf-8"))


def test_page_is_self_contained_and_shows_the_run(page, folder):
    assert page.addresses == []
    assert (folder / "report.html").stat().st_size < 15e6
    words = " ".join(" ".join(page.words).split())
    assert "Halted at step 799 (0.3995 ps): 800 judged steps were" in words
    assert "25 of 50 frames UNRELIABLE" in words
    assert "uqcalc select" in words
    assert "All 800 logged steps are drawn." in words


def test_figures_are_json_with_the_points_of_the_run(page):
    timeline = json.loads(page.data["timeline-1"])
    assert {"T", "energy drift", "P(reliable)"} <= {
        trace.get("name") for trace in timeline["data"]
    }
    shown = json.loads(page.data["dataset"])
    assert len(shown["structures"]) == len(shown["properties"]["step"]["values"])
    assert shown["environments"]


def test_neighbouring_steps_are_one_event(folder):
    found = gather([folder / "run.jsonl"])
    [run] = found.runs
    assert [t.worst for t in run.troubles] == [150, 400, 650, 799]
    assert all(t.first < t.worst <= t.last for t in run.troubles)
    assert len(found.worst) == 4
    first, text = found.worst[0]
    assert text == "step 799"
    assert found.dataset["properties"]["step"]["values"][first] == 799


def test_foreign_text_is_escaped_in_html_and_scripts(tmp_path):
    run = {"formula": NASTY, "dynamics": NASTY, "policy": {"thresholds": []}}
    log = write_log(tmp_path / "a.jsonl", [0.9, 0.3], run=run, halt=NASTY)
    log.write({"event": "warning", "step": 1, "reason": NASTY})
    shown = frame(1, 0.3, np.random.default_rng(0))
    append_frame(tmp_path / "a_<img src=x onerror=bad()>.xyz", shown)
    written = uqcalc.write_report(tmp_path / "a.jsonl", tmp_path / "page.html")
    text = written.read_text(encoding="utf-8")
    assert "<script>window.bad" not in text
    assert "<img src=x" not in text
    page = Page(text)
    assert any(NASTY in words for words in page.words)
    for figure in page.data.values():
        assert "<" not in figure
        json.loads(figure)


def test_a_run_without_verdicts_is_never_called_reliable(tmp_path):
    log = write_log(tmp_path / "run.jsonl", [])
    log.write({"event": "step", "step": 0, "time_fs": 0.0, "level": None,
               "readings": {}, "energy_eV": 0.0})  # fmt: skip
    [run] = gather([tmp_path / "run.jsonl"]).runs
    assert "nothing is known" in verdict(run)
    assert "RELIABLE" not in verdict(run)
    assert "RELIABLE" not in next_steps([run])[0][0]


def test_files_belong_to_the_log_before_them(folder, tmp_path):
    for name in ("run.jsonl", "run_b.jsonl"):
        write_log(tmp_path / name, [0.9])
    for name in ("run_flagged.xyz", "run_b_flagged.xyz", "runs.xyz", "lone.xyz"):
        (tmp_path / name).touch()
    assert [p.name for p in beside(tmp_path / "run.jsonl")] == ["run_flagged.xyz"]
    given = [tmp_path / "lone.xyz", tmp_path / "run.jsonl", tmp_path / "runs.xyz"]
    first, second = runs_of(given)
    assert (first.log, [p.name for p in first.frames]) == (None, ["lone.xyz"])
    assert [p.name for p in second.frames] == ["runs.xyz"]
    assert [run.name for run in runs_of([tmp_path])] == ["run", "run_b"]
    with pytest.raises(RecordError, match="folder must have an event log"):
        runs_of([tmp_path / "..", tmp_path])


def test_an_annotated_file_alone_is_a_run(folder, tmp_path):
    written = uqcalc.write_report(folder / "run_flagged.xyz", tmp_path / "page.html")
    words = " ".join(Page(written.read_text(encoding="utf-8")).words)
    assert re.search(r"\d+ judged frames were", words)


def test_motifs_and_their_enrichment():
    assert motifs_of(molecule("CH3OH"))[:2] == ["C(H3O)", "O(CH)"]
    counts, atoms = MotifCounts(), molecule("CH3OH")
    p = np.full(len(atoms), 0.9)
    p[1] = 0.1
    for _ in range(40):
        counts.add(atoms, p)
    by_name = {row.name: row for row in counts.motifs()}
    assert by_name["O(CH)"].unreliable == 40
    assert by_name["O(CH)"].low > 1 > by_name["H(C)"].high
    assert by_name["O(CH)"].ratio > 100
    assert counts.elements()[0].name == "O"
    assert MotifCounts().motifs() == []


def test_thinning_keeps_ends_changes_of_level_and_the_lowest_p():
    values = chances(20_000)
    values[12_345] = 0.01
    track = Track.of(event(k, float(p)) for k, p in enumerate(values))
    thin = track.thinned(600)
    assert len(thin) <= 700
    assert thin.total == 20_000
    assert {0, 150, 19_999, 12_345} <= set(thin.step.tolist())
    changes = np.flatnonzero(np.diff(track.level)) + 1
    assert set(changes.tolist()) <= set(thin.step.tolist())


def test_a_run_that_continues_replaces_the_steps_after_the_joint():
    first = [event(k, 0.9).to_dict() for k in range(10)]
    again = [event(k, 0.1).to_dict() for k in range(6, 12)]
    track = Track.of([*first, {"event": "header", "run": {}}, *again])
    assert track.step.tolist() == list(range(12))
    assert track.level.tolist() == [0] * 6 + [2] * 6


def test_image_of_atoms_has_the_worst_ones():
    columns = [(k, np.linspace(0, 1, 500, dtype=np.float32)) for k in range(1000)]
    steps, atoms, table = atom_image(columns)
    assert atoms == list(range(300))
    assert table.shape == (300, len(steps)) == (300, 400)
    assert (steps[0], steps[-1]) == (0, 999)


def test_maps_without_umap_are_principal_components(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "umap", None)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 5))
    places, method = map_of(vectors)
    again, _ = map_of(vectors)
    assert method == "PCA"
    assert np.array_equal(places, again)
    assert map_of(vectors[:1])[0].shape == (1, 2)


@pytest.mark.parametrize("package", ["plotly.graph_objects", "chemiscope"])
def test_missing_package_names_the_extra(folder, tmp_path, monkeypatch, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtraError, match=r'pip install "uqcalc\[report\]"'):
        uqcalc.write_report(folder / "run.jsonl", tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_commands_write_pictures_and_pages(folder, tmp_path):
    run = CliRunner().invoke
    log, flagged = str(folder / "run.jsonl"), str(folder / "run_flagged.xyz")
    for command in (
        ["plot", log, "-o", str(tmp_path / "run.svg")],
        ["plot", flagged, "--shade", "importance", "-o", str(tmp_path / "frame.pdf")],
        ["report", log, "-o", str(tmp_path / "page.html")],
    ):
        done = run(app, command)
        assert done.exit_code == 0, done.output
    assert {p.name for p in tmp_path.iterdir()} == {"run.svg", "frame.pdf", "page.html"}
    assert "UNRELIABLE" in run(app, ["watch", str(folder), "--once"]).output
    wrong = run(app, ["plot", flagged, "--shade", "force_delta"])
    assert wrong.exit_code == 1
    assert "['reliability', 'importance']" in " ".join(wrong.output.split())


def test_embeddings_are_those_of_the_network_and_nan_where_it_fails():
    calculator = uqcalc.default_calculator()
    [signal] = [s for s in calculator.signals if s.name == "probe"]
    frames = [molecule("CH3OH"), molecule("SH2"), molecule("CH3OH")]
    frames[2].rotate(40, "x")
    found = signal.probe.embeddings(frames, calculator)
    assert found.shape == (3, signal.probe.card.shape["embedding"])
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[0], found[2], atol=1e-3)


def test_attention_entropy():
    assert uqcalc.attention_entropy(np.full(8, 1 / 8)) == pytest.approx(1)
    assert uqcalc.attention_entropy([1.0, 0.0, 0.0]) == 0
    assert np.isnan(uqcalc.attention_entropy([np.nan, 0.5]))
    with pytest.raises(ValueError, match="importance must be shares"):
        uqcalc.attention_entropy([])


def test_choices_of_commands_are_those_of_the_package():
    """The command line repeats two values, so that help needs no import of ASE."""
    from uqcalc.cli import plot, watch
    from uqcalc.plotting.structure import SHADES
    from uqcalc.viewing.web import PORT

    assert plot.__globals__["SHADES"] == tuple(SHADES)
    assert watch.__kwdefaults__["port"] == PORT
