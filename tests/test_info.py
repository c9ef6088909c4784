from __future__ import annotations

import json
from contextlib import suppress
from importlib.resources import files

import pytest
from ase import units
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from toys import BAD, GOOD, NAN, SUSPECT, watched
from typer import Typer
from typer.testing import CliRunner

from uqcalc import Level, Monitor, read_log
from uqcalc.cli.info import info
from uqcalc.defaults import shipped_probe
from uqcalc.errors import RecordError
from uqcalc.evaluation.cardinfo import card_info
from uqcalc.info import file_info, log_info
from uqcalc.watching.eventlog import EventLog
from uqcalc.watching.logsummary import summarise_log


def ran(path, risks=(), steps=6, **options):
    """Run copper for some steps and return the path of its log."""
    dynamics = VelocityVerlet(watched(risks), 2 * units.fs)
    options = {"patience": 3} | options
    Monitor(dynamics, log=path, **options)
    dynamics.run(steps)
    return path


def cut(path, event):
    """Leave out the records of one kind, as if they had not been written yet."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(x for x in lines if f'"event": "{event}"' not in x))


def test_log_info_has_length_and_levels(tmp_path):
    risks = [GOOD, 0.9, SUSPECT, NAN, GOOD, BAD, GOOD]
    path = ran(tmp_path / "run.jsonl", risks, flagged=tmp_path / "f.xyz", max_flagged=2)
    log = summarise_log(path, worst=4)
    assert (log.first_step, log.last_step, log.time_fs) == (0, 6, pytest.approx(12))
    assert log.levels == {
        Level.RELIABLE: 3,
        Level.SUSPECT: 1,
        Level.UNRELIABLE: 3,
    }
    assert [record["step"] for record in log.worst] == [3, 5, 1, 2]
    assert (log.end["how"], log.sessions, log.judged) == ("finished", 1, ("scripted",))
    found = log_info(log, "run.jsonl")
    rows = dict(found.rows)
    assert rows["ended"] == "finished at step 6"
    assert rows["steps"] == "0 to 6, 12 fs"
    assert rows["judged"] == "3 RELIABLE, 1 SUSPECT, 3 UNRELIABLE"
    assert rows["flagged frames"] == "1 written, 2 left out"
    assert rows["limits on the risk"] == (
        "scripted: SUSPECT above 0.3, UNRELIABLE above 0.7"
    )
    assert found.table[0][:4] == ("3", "6", found.table[0][2], "UNRELIABLE")
    assert "NaN" in found.table[0][4]
    assert found.table[1][4:] == ("scripted: risk 1 eV > 0.7 eV", "3 2 1 0")


def test_every_halt_of_a_log_is_listed(tmp_path):
    path = tmp_path / "run.jsonl"
    dynamics = VelocityVerlet(watched([GOOD, BAD, GOOD, BAD, GOOD]), 2 * units.fs)
    monitor = Monitor(dynamics, log=path, patience=1)
    for _ in range(3):
        dynamics.run(2)
        dynamics.run(2)  # refused while the halt lasts
        monitor.resume()
    log = summarise_log(path)
    assert [halt["step"] for halt in log.halts] == [1, 3]
    rows = dict(log_info(log).rows)
    assert rows["halt 1"].startswith("UNRELIABLE at step 1: scripted: risk 1 eV")
    assert rows["halt 2"].startswith("UNRELIABLE at step 3")
    assert rows["ended"] == "finished at step 7"
    only = log_info(summarise_log(ran(tmp_path / "one.jsonl", [BAD] * 4)))
    assert "halt 1" not in dict(only.rows)  # the row "ended" contains it


def ended(path):
    return dict(log_info(summarise_log(path)).rows)["ended"]


def test_end_is_reported(tmp_path):
    halted = ran(tmp_path / "halted.jsonl", [GOOD, BAD, BAD, BAD])
    assert ended(halted).startswith(
        "halted: UNRELIABLE for 3 frames in a row at step 3"
    )
    cut(halted, "end")
    assert ended(halted) == (
        "not yet, or killed after step 3: the log has no end record"
    )
    dynamics = BFGS(watched(), logfile=None)
    Monitor(dynamics, log=tmp_path / "relax.jsonl")
    assert not dynamics.run(fmax=1e-9, steps=2)
    assert ended(tmp_path / "relax.jsonl") == "finished at step 2, not converged"
    assert dynamics.run(fmax=0.05)
    assert ended(tmp_path / "relax.jsonl").endswith(", converged")
    warned = ran(tmp_path / "warned.jsonl", [BAD] * 7, on_unreliable="warn")
    assert dict(log_info(summarise_log(warned)).rows)["warnings"] == "2"


def test_steps_that_were_run_again_count_once(tmp_path):
    path = ran(tmp_path / "run.jsonl", [GOOD, GOOD, GOOD, BAD, BAD], steps=4)
    cut(path, "end")
    ran(path, steps=2, first_step=3, mode="append")
    log = summarise_log(path)
    assert log.levels[Level.RELIABLE] == sum(log.levels.values()) == 6
    assert (log.last_step, log.sessions) == (5, 2)
    assert dict(log_info(log).rows)["sessions"] == "2"


def test_log_without_steps_is_accepted(tmp_path):
    path = ran(tmp_path / "run.jsonl", steps=1)
    cut(path, "step")
    cut(path, "end")
    found = file_info(path)
    assert dict(found.rows)["steps"] == "none yet"
    assert found.table == ()


def test_card_shows_scores_with_values_without_skill():
    card = shipped_probe("default").card
    found = card_info(card)
    rows = dict(found.rows)
    assert rows["predicts"] == "P(RMS force error <= 0.2 eV/Å)"
    assert rows["elements"] == "H C N O"
    assert rows["for the backbone"] == card.fingerprint
    assert rows["cutoffs"] == "SUSPECT below 0.8, UNRELIABLE below 0.5"
    report = card.report
    assert rows["accuracy"] == (
        f"{report['accuracy']:.3f} (majority class {report['majority_accuracy']:.3f})"
    )
    assert rows["ECE"] == (
        f"{report['ece']:.3f} (noise floor {report['ece_noise_floor']:.3f})"
    )
    assert rows["AUROC"] == f"{report['auroc']:.3f} (chance 0.500)"
    train = card.training["structures"]["train"]
    assert rows["structures"].startswith(f"{train} train in ")
    assert len(found.table) == len(report["coverage"])


def test_minimal_card_has_rows_for_known_entries(tmp_path):
    card = shipped_probe("default").card.to_dict()
    card |= {"report": {}, "training": {}, "elements": [], "sizes": []}
    found = card_info(type(shipped_probe("default").card).from_dict(card))
    rows = dict(found.rows)
    assert rows["elements"] == rows["atoms per structure"] == "not stated"
    assert found.table == ()


def test_the_command_recognises_both_by_content(tmp_path):
    app = Typer()
    app.command()(info)
    probe = tmp_path / "renamed.dat"
    probe.write_bytes((files("uqcalc") / "data" / "default.probe").read_bytes())
    result = CliRunner().invoke(app, [str(probe)])
    assert result.exit_code == 0
    assert "P(RMS force error" in result.output
    log = ran(tmp_path / "log.probe", [GOOD, BAD])
    result = CliRunner().invoke(app, [str(log)])
    assert result.exit_code == 0
    assert "finished at step 6" in result.output
    assert "Worst steps" in result.output
    result = CliRunner().invoke(app, [str(tmp_path / "none")])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)  # a message, no traceback


@pytest.mark.parametrize("content", [None, b"", b"a text", b"\x00" * 20])
def test_other_file_is_refused_with_the_requirement(tmp_path, content):
    path = tmp_path / "some.file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecordError, match=r"must be a probe .* or an event log"):
        file_info(path)


@pytest.mark.parametrize("first", [{"event": "step", "step": 0}, {}, {"a": 1}])
def test_other_json_lines_are_not_a_log(tmp_path, first):
    path = tmp_path / "some.jsonl"
    path.write_text(json.dumps(first) + "\n", encoding="utf-8")
    with pytest.raises(RecordError, match="must begin with a header record"):
        file_info(path)
    assert list(read_log(path)) == [first]


# ---------------------------------------------------------- what is no log of ours


def shown(path):
    app = Typer(pretty_exceptions_enable=False)
    app.command()(info)
    result = CliRunner().invoke(app, [str(path)])
    assert isinstance(result.exception, SystemExit | None), result.exception
    return result


def as_it_was_before_checksums(path):
    """Return the records of a log, and leave them in it without their checksums."""
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for record in records:
        record.pop("crc32", None)
    written(path, records)
    return records


def written(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


OTHERS = (None, 1e400, "x", [1], {"a": 1})


def mutants(value):
    """Yield a value with each of its entries, at any depth, of other types."""
    if isinstance(value, dict):
        for key, entry in value.items():
            for other in (*OTHERS, *mutants(entry)):
                yield value | {key: other}
            yield {k: v for k, v in value.items() if k != key}
    elif isinstance(value, list):
        for i, entry in enumerate(value):
            for other in mutants(entry):
                yield [*value[:i], other, *value[i + 1 :]]


def test_log_with_wrong_types_is_a_record_error_or_is_read(tmp_path):
    path = ran(tmp_path / "run.jsonl", [GOOD, BAD, BAD, BAD])
    records = as_it_was_before_checksums(path)
    assert file_info(path).table
    kinds = {record["event"]: i for i, record in enumerate(records)}
    tried = refused = 0
    for number in kinds.values():
        for mutant in mutants(records[number]):
            written(path, [*records[:number], mutant, *records[number + 1 :]])
            tried += 1
            try:
                file_info(path)
            except RecordError:
                refused += 1
            with suppress(RecordError):  # a log that continues it
                EventLog(path, {"run": records[0]["run"]}, "append")
    assert refused > tried / 4


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}\n",
        b'{"level": "info", "msg": "started"}\n',
        b'{"event": "step"}\n',
        b'{"event": "header", "run": []}\n',
        b'{"event": ["header"], "run": {}}\n',
        b'{"event": "header", "run": {}}\n{"event": {}}\n{"event": "step"}\n',
        b"[1, 2]\n",
        b"{" * 100_000 + b"\n",
        b'{"event": "header", "run": {}, "n": ' + b"9" * 5000 + b"}\n",
        b'{"event": "header", "run": {}}\n\xff\xfe\n',
        b"\x00" * 8 + b"{",
        b"\xff" * 8 + b"{",
    ],
)
def test_a_file_of_another_program_gets_a_message(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    result = shown(path)
    assert result.exit_code == 1
    assert str(path) in result.output.replace("\n", "")


def test_a_folder_gets_a_message(tmp_path):
    result = shown(tmp_path)
    assert result.exit_code == 1
    assert "which is a folder" in result.output


def test_escape_sequences_in_a_file_do_not_reach_the_terminal(tmp_path):
    path = ran(tmp_path / "run.jsonl", [GOOD, BAD, BAD, BAD])
    records = as_it_was_before_checksums(path)
    evil = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e"
    records[0]["run"] |= {"formula": f"Cu4{evil}"}
    records[-1]["reason"] = evil
    records[2]["reasons"] = [evil]
    written(path, records)
    result = shown(path)
    assert result.exit_code == 0
    assert "Cu4\\x1b[2J" in result.output
    assert not set(result.output) & set(evil) - set("[2J]0;owned31m")
    path.write_text(f"{{{evil}\n", encoding="utf-8")
    result = shown(path)
    assert result.exit_code == 1
    assert not set(result.output) & set(evil) - set("[2J]0;owned31m")
