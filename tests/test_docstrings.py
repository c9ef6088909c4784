"""Every example in a docstring is run, and none is skipped."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import uqcalc


PACKAGE = Path(uqcalc.__file__).parent


def found():
    """Return the examples of each docstring that has some, by its name."""
    finder, cases = doctest.DocTestFinder(), {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>>" in path.read_text(encoding="utf-8"):
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            module = ".".join(("uqcalc", *parts)).removesuffix(".__init__")
            tests = finder.find(import_module(module), module)
            cases |= {case.name: case for case in tests if case.examples}
    return cases


EXAMPLES = found()


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case, said = EXAMPLES[name], []
    skipped = [e.source for e in case.examples if doctest.SKIP in e.options]
    assert not skipped, f"run these or remove them: {skipped}"
    result = doctest.DocTestRunner(verbose=False).run(case, out=said.append)
    assert result.attempted == len(case.examples)
    assert not result.failed, "".join(said)


def test_every_example_is_found():
    """An example in a text that is not a docstring would never be run."""
    texts = (path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    written = sum(text.count(">>> ") for text in texts)
    assert written == sum(len(case.examples) for case in EXAMPLES.values()) > 0
