"""Reference methods by name: a function that makes an ASE calculator."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from uqcalc.errors import MissingExtraError, RecordError


def gfn2_xtb() -> Any:
    """Return a GFN2-xTB calculator (doi:10.1021/acs.jctc.8b01176).

    Raises
    ------
    MissingExtraError
        If tblite is not installed.
    """
    if importlib.util.find_spec("tblite") is None:
        raise MissingExtraError("the reference gfn2-xtb", "tblite", "xtb")
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", verbosity=0)


NAMED: dict[str, Callable[[], Any]] = {"gfn2-xtb": gfn2_xtb}


class FromText:
    """Makes a calculator with a function that is named by a text.

    Parameters
    ----------
    text : str
        A name of `NAMED`, ``package.module:function`` or ``file.py:function``.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.path = ""
        place, _, self.function = text.rpartition(":")
        if text in NAMED:
            return
        if not place or not self.function.isidentifier():
            msg = (
                f"reference must be one of {', '.join(NAMED)}, file.py:function or "
                f"module:function, got {text!r}; the function returns an ASE calculator"
            )
            raise RecordError(msg)
        if place.endswith(".py"):
            self.path = str(Path(place).absolute())
            if not Path(self.path).is_file():
                msg = f"file of the reference must exist, got {place}; check its path"
                raise RecordError(msg)

    def find(self) -> Callable[..., Any]:
        """Return the function.

        Raises
        ------
        RecordError
            If the module or file has no such function.
        """
        if self.text in NAMED:
            return NAMED[self.text]
        module = self._module()
        found: Callable[..., Any] | None = getattr(module, self.function, None)
        if found is None or not callable(found):
            msg = (
                f"reference must name a function of {module.__name__}, got "
                f"{self.function!r}; give one that returns an ASE calculator"
            )
            raise RecordError(msg)
        return found

    def _module(self) -> ModuleType:
        place = self.text.rpartition(":")[0]
        if not self.path:
            try:
                return importlib.import_module(place)
            except ImportError as error:
                msg = (
                    f"reference must name a module that can be imported, got {place!r} "
                    f"({error}); install it, or name a file: file.py:function"
                )
                raise RecordError(msg) from error
        spec = importlib.util.spec_from_file_location(Path(self.path).stem, self.path)
        if spec is None or spec.loader is None:
            msg = f"file of the reference must be Python, got {self.path}"
            raise RecordError(msg)
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(spec.name, module)
        spec.loader.exec_module(module)
        return module


Reference: TypeAlias = FromText | Callable[..., Any]


def reference_name(reference: Reference) -> str:
    """Return the name of a reference that is stored with its labels."""
    if isinstance(reference, FromText):
        return reference.text
    for name, function in NAMED.items():
        if reference is function:
            return name
    name = getattr(reference, "__qualname__", type(reference).__qualname__)
    return f"{reference.__module__}.{name}"
