"""The environment has the versions of its lock, and the lock is for all machines."""

import re
import sys
from pathlib import Path

import pytest
from lock import STAMP, differences, installed, locked, stamped


FOLDER = Path(__file__).parents[1] / "constraints"
LOCKS = sorted(FOLDER.glob("py*.txt"))


def test_installed_versions_are_the_locked_ones():
    found = stamped()
    if found is None:
        pytest.skip(f"{sys.prefix} was not made by the Makefile: nothing binds it")
    path, extras = found
    if not path.exists():
        pytest.skip(f"{path.name} does not exist: this Python has no lock yet")
    lines = differences(installed(extras), locked(path))
    assert not lines, "\n".join(
        [f"differs from {path.name} (see `make lock`):", *lines]
    )


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_holds_on_every_machine(path):
    """Names and releases only: no folder, no address, no build for one machine."""
    lines = [line for line in path.read_text().splitlines() if line[:1] != "#"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)
    versions = locked(path)
    assert list(versions) == sorted(versions)
    assert len(versions) == len(lines) > 30
    assert versions["torch"] == "2.13.0"  # the figures in the documentation are of it
    # fairchem-core itself requires some on every Linux machine
    of_builds = [name for name in versions if name.startswith(("nvidia-c", "cuda-"))]
    assert not of_builds or path.stem.endswith("fairchem")


def test_differences_are_named(tmp_path):
    path = tmp_path / "py.txt"
    path.write_text("# by hand\nnumpy==2.0.1\nTorch_Geometric==1.2\nase==3.29.0\n")
    found = {"ase": "3.29.0", "numpy": "2.0.2", "torch": "2.13.0"}
    assert differences(found, locked(path)) == [
        "numpy: 2.0.2 is installed, 2.0.1 is locked",
        "torch: 2.13.0 is installed, no version is locked",
    ]


def test_dependencies_of_uqcalc_are_found_through_other_packages():
    found = installed(frozenset())
    assert {"numpy", "torch", "contourpy"} <= found.keys()  # one through matplotlib
    assert "uqcalc" not in found
    assert "+" not in found["torch"]


def test_other_environments_have_no_lock(tmp_path):
    assert stamped(tmp_path / STAMP.name) is None
    (tmp_path / STAMP.name).write_text("")
    assert stamped(tmp_path / STAMP.name) is None
    (tmp_path / STAMP.name).write_text("py311.txt all,dev\n")
    path, extras = stamped(tmp_path / STAMP.name)
    assert (path, extras) == (FOLDER / "py311.txt", {"all", "dev"})
