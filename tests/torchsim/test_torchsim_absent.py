"""Without torch_sim the names give an error with the extra; all else works."""

from __future__ import annotations

import sys

import pytest

import uqcalc.torchsim
from uqcalc.errors import MissingExtraError


@pytest.mark.parametrize("name", uqcalc.torchsim.__all__)
def test_each_name_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_sim", None)
    with pytest.raises(MissingExtraError, match=r"uqcalc\[torchsim\]") as error:
        getattr(uqcalc.torchsim, name)
    assert error.value.extra == "torchsim"


@pytest.mark.parametrize(("release", "said"), [((3, 11), True), ((3, 12), False)])
def test_an_older_python_is_named(release, said, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (*release, 0))
    text = str(MissingExtraError("a run", "torch-sim-atomistic", "torchsim"))
    assert ("with Python 3.12 and newer" in text) is said


def test_other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="gard"):
        uqcalc.torchsim.gard  # noqa: B018
    assert set(uqcalc.torchsim.__all__) <= set(dir(uqcalc.torchsim))
