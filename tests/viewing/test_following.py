"""Live views only read; incomplete lines, removed files and large logs do no harm."""

from __future__ import annotations

import json
import os
from io import StringIO

import numpy as np
import pytest
from rich.console import Console
from viewings import NASTY, event, frame, write_log, write_run

from uqcalc.annotating.frames import append_frame
from uqcalc.records import Level
from uqcalc.viewing import following
from uqcalc.viewing.following import Follower, Watched, last_frame
from uqcalc.viewing.terminal import screen


@pytest.fixture
def log(tmp_path):
    return write_log(tmp_path / "run.jsonl", np.full(20, 0.9))


def shown(runs):
    console = Console(width=100, record=True, file=StringIO())
    console.print(screen(runs))
    return console.export_text()


def test_new_records_are_read_once_and_incomplete_lines_later(log):
    run = Follower(log.path)
    assert run.poll()
    assert not run.poll()
    line = json.dumps(event(20, 0.3, ("low",)).to_dict()) + "\n"
    with log.path.open("a") as file:
        file.write(line[:40])
    assert not run.poll()
    with log.path.open("a") as file:
        file.write(line[40:])
    assert run.poll()
    assert (run.last["step"], run.level, run.why) == (20, Level.UNRELIABLE, "low")
    assert run.track.total == 21
    assert run.status == "running"
    with log.path.open("a") as file:
        file.write('{"event": "end", "how": "halted", "reason": "why"}\n')
    run.poll()
    assert (run.status, run.why) == ("halted", "why")


def test_damaged_lines_are_counted_and_passed_over(log):
    with log.path.open("ab") as file:
        file.write(b'\xff\xfe\n[1, 2]\n{"event": "step"}\n')
    run = Follower(log.path)
    run.poll()
    assert run.damaged == 3
    assert len(run.track) == 20
    assert "3 lines" in shown([run])


def test_removed_file_keeps_its_last_state_and_a_new_one_is_read(log):
    run = Follower(log.path)
    run.poll()
    text = log.path.read_text()
    log.path.unlink()
    assert not run.poll()
    assert run.status == "gone"
    assert run.last["step"] == 19
    log.path.write_text("".join(text.splitlines(keepends=True)[:5]))
    run.poll()
    assert run.last["step"] == 3


def test_long_silence_gives_a_note(log):
    now = [log.path.stat().st_mtime]
    run = Follower(log.path, clock=lambda: now[0])
    run.poll()
    assert run.status == "running"
    now[0] += 500
    run.poll()
    assert run.status == "quiet"
    assert "has not grown for 500 s" in shown([run])


def test_rate_and_time_left(tmp_path):
    run_of = {"formula": "CH4", "about": {"input": {"md": {"steps": 1020}}}}
    log = write_log(tmp_path / "run.jsonl", np.full(20, 0.9), run=run_of)
    now = [log.path.stat().st_mtime + 10]
    run = Follower(log.path, clock=lambda: now[0])
    run.poll()
    assert run.rate is None
    for step in range(20, 120):
        log.write(event(step, 0.9).to_dict())
    now[0] += 10
    os.utime(log.path, (now[0], now[0]))
    run.poll()
    assert run.rate == pytest.approx(10)
    assert run.left_s == pytest.approx(90.1, rel=0.02)


def test_memory_and_reading_of_a_large_log_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(following, "WHOLE", 200_000)
    monkeypatch.setattr(following, "END", 20_000)
    monkeypatch.setattr(following, "SAMPLES", 100)
    log = write_log(tmp_path / "run.jsonl", np.full(5000, 0.9), halt="early")
    for step in range(5000, 5200):
        log.write(event(step, 0.4).to_dict())
    run = Follower(log.path)
    run.poll()
    assert run.sampled
    assert len(run.track) < 300
    assert run.track.step[-1] == 5199
    assert [mark.reason for mark in run.track.marks] == ["early"]
    assert "large" in shown([run])
    whole = Follower(log.path)
    monkeypatch.setattr(following, "WHOLE", 2**40)
    whole.poll()
    assert whole.track.total == 5200
    assert len(whole.track) <= 2 * following.MOST


def test_last_complete_frame_is_read_from_the_end(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "run_flagged.xyz"
    for step in range(5):
        append_frame(path, frame(step, 0.3, rng))
    text = path.read_text()
    assert last_frame(path).info["step"] == 4
    path.write_text(text[:-10])
    assert last_frame(path).info["step"] == 3
    path.write_text("")
    assert last_frame(path) is None
    assert last_frame(tmp_path / "missing.xyz") is None


def test_no_text_of_a_log_reaches_the_terminal_as_an_escape(tmp_path):
    run = Follower(write_log(tmp_path / "run.jsonl", [0.3], halt="\x1b[2J").path)
    run.poll()
    assert "\x1b[2J" not in shown([run])
    assert "\\x1b[2J" in shown([run])


@pytest.fixture
def client(tmp_path):
    pytest.importorskip("httpx")
    testing = pytest.importorskip("starlette.testclient")
    from uqcalc.viewing.web import application

    write_run(tmp_path, "one", 200)
    write_log(tmp_path / "two.jsonl", [0.9], halt=NASTY)
    return testing.TestClient(application(tmp_path), base_url="http://127.0.0.1:8741")


def test_server_gives_the_state_and_no_other_file(client, tmp_path):
    state = client.get("/state").json()
    assert [run["name"] for run in state["runs"]] == ["one", "two"]
    assert state["runs"][0]["status"] == "halted"
    assert client.get("/timeline/0").json()["data"]
    assert client.get("/structure/0").json()["file"] == "one_flagged.xyz"
    assert client.get("/structure/1").json() is None
    assert client.get("/timeline/9").json() is None
    for path in ("/asset/../../etc/passwd", "/asset/none.js", "/etc/passwd"):
        assert client.get(path).status_code == 404
    assert client.get("/state", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/state").headers["content-type"] == "application/json"
    before = sorted(path.name for path in tmp_path.iterdir())
    assert not [name for name in before if name.endswith(".html")]


def test_a_new_log_in_the_folder_is_found(tmp_path):
    watched = Watched(tmp_path)
    assert watched.poll() == []
    write_log(tmp_path / "run.jsonl", [0.9])
    assert [run.path.name for run in watched.poll()] == ["run.jsonl"]
