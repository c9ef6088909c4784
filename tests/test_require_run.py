"""`--require-run`: a backbone's tests cannot pass by being skipped."""

from __future__ import annotations

from pathlib import Path

import pytest


pytest_plugins = ["pytester"]
SOURCES = {
    "test_absent": "import pytest\npytest.skip('none', allow_module_level=True)",
    "test_skipped": "import pytest\n@pytest.mark.skip\ndef test_one(): pass",
    "test_there": "def test_two(): pass",
    "test_rows": """
import pytest
@pytest.mark.parametrize("row", ["here", "gone"])
def test_row(row):
    if row == "gone":
        pytest.skip(row)
""",
}


@pytest.mark.parametrize(
    ("required", "exit_code", "said"),
    [
        ([], 0, None),
        (["test_there"], 0, None),
        (["test_absent"], 1, "no test ran in test_absent"),
        (["test_rows", "test_rows[here]"], 0, None),
        (["test_rows[gone]"], 1, "no test ran in test_rows[gone]"),
        (["test_there[here]"], 1, "no test ran in test_there[here]"),
        (["test_there", "test_skipped"], 1, "no test ran in test_skipped"),
        (["test_nowhere"], 1, "no test ran in test_nowhere"),
    ],
)
def test_exit_code(pytester, required, exit_code, said):
    check(pytester, required, exit_code, said)


@pytest.mark.parametrize(
    ("required", "exit_code", "said"),
    [
        (["test_there"], 0, None),
        (["test_absent"], 1, "no test ran in test_absent"),
    ],
)
def test_exit_code_of_two_processes(pytester, required, exit_code, said):
    check(pytester, required, exit_code, said, "-n", "2")


def check(pytester, required, exit_code, said, *processes):
    pytester.makeconftest(Path(__file__).with_name("conftest.py").read_text("utf-8"))
    pytester.makepyfile(**SOURCES)
    options = [word for name in required for word in ("--require-run", name)]
    run = pytester.runpytest_subprocess(*options, "-p", "no:cacheprovider", *processes)
    assert run.ret == exit_code
    assert (said is None) or said in run.stdout.str()
