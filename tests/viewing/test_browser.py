"""The pages in a browser, without a network: `make test-browser`."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from ase.build import molecule
from browsing import chromium, sized, wait_for
from viewings import NASTY, chances, event, frame, write_log, write_run

import uqcalc
from uqcalc.annotating.frames import append_frame
from uqcalc.defaults import shipped_probe


pytestmark = pytest.mark.browser
READY = "return document.documentElement.dataset.ready === 'yes'"
SHOWN = "return document.documentElement.dataset.viewer === 'shown'"
# Seconds until WebGL in software has drawn a structure, on a busy machine too.
SLOW = 240
# Number of the structure in the viewer, from 0, and of its environment.
STRUCTURE = """
  return [...document.querySelector('#uq-info div').shadowRoot
    .querySelectorAll('input')].map(one => one.value).join();
"""
# messages of software rendering of WebGL
_OF_THE_DRIVER = "GL Driver Message"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def errors(browser):
    return [
        entry["message"]
        for entry in browser.get_log("browser")
        if entry["level"] == "SEVERE" and _OF_THE_DRIVER not in entry["message"]
    ]


def see(browser, part):
    """Bring a part of the page into view."""
    browser.execute_script(f"document.getElementById('{part}').scrollIntoView()")


def click(browser, place):
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        given = {"type": kind, "x": place[0], "y": place[1], "clickCount": 1}
        given |= {} if kind == "mouseMoved" else {"button": "left"}
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", given)
        time.sleep(0.3)


def changed(browser, before):
    """Wait until the viewer shows another structure than before."""
    end = time.monotonic() + SLOW
    while browser.execute_script(STRUCTURE) == before:
        assert time.monotonic() < end, before
        time.sleep(0.2)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_run(folder)
    return uqcalc.write_report(folder / "run.jsonl", folder / "report.html")


@pytest.mark.parametrize("width", [1280, 400])
def test_a_report_renders_without_an_error(browser, page, width):
    sized(browser, width)
    browser.get(page.as_uri())
    wait_for(browser, READY)
    assert errors(browser) == []
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= window.innerWidth"
    )
    points = """
      const plot = document.querySelector('.plot[data-figure="timeline-1"]');
      return plot._fullData.find(t => t.name === 'P(reliable)')._length;
    """
    assert wait_for(browser, points) == 800
    see(browser, "where")
    plots = "return document.querySelectorAll('.plot.js-plotly-plot').length >= 3"
    wait_for(browser, plots)
    see(browser, "structures")
    wait_for(browser, SHOWN, SLOW)
    said = "return document.getElementById('uq-state').textContent"
    assert browser.execute_script(said) == ""
    assert errors(browser) == []


def test_a_click_on_the_curve_loads_the_viewer_and_shows_a_structure(browser, page):
    sized(browser, 1280, 300)
    browser.get(page.as_uri())
    wait_for(browser, READY)
    assert (
        browser.execute_script("return document.documentElement.dataset.viewer") is None
    )
    steps = browser.execute_script("return uq.data('dataset').properties.step.values")
    place = browser.execute_script("""
      const plot = document.querySelector('.plot[data-figure="timeline-1"]');
      plot.scrollIntoView();
      const box = plot.getBoundingClientRect();
      const x = plot._fullLayout.xaxis, y = plot._fullLayout.yaxis;
      return [box.left + x._offset + x.d2p(0.139), box.top + y._offset + y._length / 2];
    """)
    click(browser, place)  # at step 278; the steps 240, 280 and 320 were saved
    wait_for(browser, SHOWN, SLOW)
    wanted = str(steps.index(280))
    end = time.monotonic() + SLOW
    while (found := browser.execute_script(STRUCTURE).split(",")[0]) != wanted:
        assert time.monotonic() < end, (found, wanted)
        time.sleep(0.2)
    assert errors(browser) == []


def test_a_click_on_a_point_of_the_map_shows_its_structure(browser, page):
    sized(browser, 1280)
    browser.get(page.as_uri())
    wait_for(browser, READY)
    see(browser, "structures")
    wait_for(browser, SHOWN, SLOW)
    before = browser.execute_script(STRUCTURE)
    place = browser.execute_script("""
      document.getElementById('uq-map').scrollIntoView({block: 'center'});
      const root = document.querySelector('#uq-map div').shadowRoot;
      const plot = root.querySelector('.js-plotly-plot');
      const box = plot.getBoundingClientRect();
      const x = plot._fullLayout.xaxis, y = plot._fullLayout.yaxis;
      const data = plot._fullData[0];
      return [box.left + x._offset + x.d2p(data.x[3]),
              box.top + y._offset + y.d2p(data.y[3])];
    """)
    click(browser, place)
    changed(browser, before)
    assert errors(browser) == []


@pytest.fixture(scope="module")
def evaluation_page(tmp_path_factory):
    """The page of an evaluation of the default probe, with generated errors."""
    calculator = uqcalc.open_model("default")
    rng = np.random.default_rng(0)
    frames = [molecule(["CH3OH", "H2O", "C6H6"][k % 3]) for k in range(24)]
    for atoms in frames:
        atoms.rattle(0.05, rng=rng)
        atoms.calc = calculator
        forces = atoms.get_forces()
        atoms.calc = None
        atoms.arrays["REF_forces"] = forces + rng.normal(0, rng.random(), forces.shape)
    folder = tmp_path_factory.mktemp("evaluation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", uqcalc.LabelWarning)
        found = uqcalc.evaluate(shipped_probe("default"), frames, calculator)
    return found.write(folder / "page")[2]


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_of_an_evaluation_shows_its_worst_structures(
    browser, evaluation_page, width
):
    sized(browser, width)
    browser.get(evaluation_page.as_uri())
    wait_for(browser, READY)
    see(browser, "structures")
    wait_for(browser, SHOWN, SLOW)
    before = browser.execute_script(STRUCTURE)
    buttons = browser.find_elements("css selector", "button[data-structure]")
    browser.execute_script("arguments[0].click()", buttons[3])
    changed(browser, before)
    assert errors(browser) == []
    assert browser.execute_script(
        "return document.documentElement.scrollWidth <= window.innerWidth"
    )


def test_no_text_of_a_run_is_executed(browser, tmp_path):
    run = {"formula": NASTY, "dynamics": NASTY, "policy": {"thresholds": []}}
    write_log(tmp_path / "a.jsonl", [0.9, 0.3], run=run, halt=NASTY)
    append_frame(tmp_path / "a_<b>.xyz", frame(1, 0.3, np.random.default_rng(0)))
    written = uqcalc.write_report(tmp_path / "a.jsonl", tmp_path / "page.html")
    browser.get(written.as_uri())
    wait_for(browser, READY)
    assert browser.execute_script("return typeof window.bad") == "undefined"
    assert NASTY in browser.execute_script("return document.body.textContent")
    assert errors(browser) == []


@pytest.fixture
def served(tmp_path):
    """A folder with a growing log, and the address of its live page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = write_log(tmp_path / "run.jsonl", chances(200)[:150])
    command = [sys.executable, "-m", "uqcalc", "watch", str(tmp_path), "--web"]
    server = subprocess.Popen([*command, "--port", str(port)])
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    yield log, f"http://127.0.0.1:{port}/"
    server.terminate()
    server.wait(timeout=30)


def test_the_live_page_follows_a_run(browser, served, tmp_path):
    log, address = served
    sized(browser, 1280)
    browser.get(address)
    wait_for(browser, READY)
    text = "return document.body.innerText"
    assert "step 149" in browser.execute_script(text)

    log.write(event(150, 0.3, ("low P",)).to_dict())
    began = time.monotonic()
    wait_for(browser, "return document.body.innerText.includes('step 150')", 10)
    assert time.monotonic() - began < 2.5
    assert "low P" in browser.execute_script(text)

    line = json.dumps(event(151, 0.2).to_dict())
    with log.path.open("a") as file:
        file.write(line[:50])
    time.sleep(2)
    assert "step 150" in browser.execute_script(text)
    with log.path.open("a") as file:
        file.write(line[50:] + "\n")
    wait_for(browser, "return document.body.innerText.includes('step 151')", 10)

    end = {"event": "end", "how": "halted", "step": 151, "reason": NASTY}
    with log.path.open("a") as file:
        file.write(json.dumps(end) + "\n")
    wait_for(browser, "return document.body.innerText.includes('halted')", 10)
    assert browser.execute_script("return typeof window.bad") == "undefined"

    log.path.unlink()
    wait_for(browser, "return document.body.innerText.includes('was removed')", 10)
    assert errors(browser) == []
