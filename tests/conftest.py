"""`--require-run NAME`: a file or a backbone whose tests were all skipped fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


RAN: set[str] = set()


def pytest_addoption(parser):
    parser.addoption(
        "--require-run",
        action="append",
        default=[],
        metavar="NAME",
        help="fail unless a test of this file (its name without .py) ran, or of this "
        "parameter in it, as test_contract[mace]; repeatable",
    )


def pytest_runtest_logreport(report):
    """Record the files, and their parameters, of which a test ran.

    A skip has no call phase.
    """
    if report.when == "call" and not report.skipped:
        path, _, test = report.nodeid.partition("::")
        stem = Path(path).stem
        RAN.add(stem)
        if parameter := re.search(r"\[.*\]$", test):
            RAN.add(stem + parameter[0])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Fail a run without any outcome of a required file or backbone.

    With several processes only the first gets the outcome of every test.
    """
    if hasattr(session.config, "workerinput"):
        return
    required = session.config.getoption("require_run")
    if idle := sorted(set(required) - RAN):
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line(
            f"--require-run: no test ran in {', '.join(idle)}", red=True
        )
        if session.exitstatus in {
            pytest.ExitCode.OK,
            pytest.ExitCode.NO_TESTS_COLLECTED,
        }:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
