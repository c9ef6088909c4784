from __future__ import annotations

import json
import subprocess
import sys

import pytest

import uqcalc


PROBE = """
import json, sys, time
start = time.perf_counter()
import uqcalc
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted(sys.modules)]))
"""


def test_import_is_cheap_and_loads_nothing_heavy():
    runs = []
    for _ in range(3):  # the best of three: the machine may be busy
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", PROBE],
            capture_output=True,
            check=True,
            text=True,
        )
        runs.append(json.loads(done.stdout))
    loaded = set(runs[0][1])
    heavy = {"torch", "matplotlib", "ase", "numpy", "scipy", "sklearn", "mace"}
    assert not loaded & heavy
    assert min(seconds for seconds, _ in runs) < 0.3


@pytest.mark.parametrize("name", uqcalc.__all__)
def test_every_public_name_resolves(name):
    value = getattr(uqcalc, name)
    assert value.__name__ == name
    assert value.__doc__


def test_names_that_do_not_exist_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'Moniter'"):
        uqcalc.Moniter  # noqa: B018
    assert set(uqcalc.__all__) <= set(dir(uqcalc))


def test_static_and_lazy_names_agree():
    """What type checkers see under TYPE_CHECKING is what is loaded at run time."""
    import ast
    from pathlib import Path

    tree = ast.parse(Path(uqcalc.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    static = {alias.name: node.module for node in block.body for alias in node.names}
    assert static == {name: f"uqcalc.{home}" for name, home in uqcalc._HOME.items()}
