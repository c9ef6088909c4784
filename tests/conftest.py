"""`--require-run FILE`: a file whose tests were all skipped is a failure."""

from __future__ import annotations

from pathlib import Path

import pytest


RAN: set[str] = set()


def pytest_addoption(parser):
    parser.addoption(
        "--require-run",
        action="append",
        default=[],
        metavar="FILE",
        help="fail unless a test of this file (its name without .py) ran; repeatable",
    )


def pytest_runtest_logreport(report):
    """Remember the files of which a test ran; a skip has no call phase."""
    if report.when == "call" and not report.skipped:
        RAN.add(Path(report.nodeid.partition("::")[0]).stem)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Fail a run without a single outcome where one was asked for.

    With several processes the first alone hears of every test.
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
