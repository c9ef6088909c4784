"""Structures in three dimensions on a page: chemiscope (doi:10.21105/joss.02117)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from ase import Atoms

from uqcalc.errors import MissingExtraError


def viewer_script() -> str:
    """Return the JavaScript of chemiscope, from its package.

    Raises
    ------
    MissingExtraError
        If chemiscope is not installed.
    """
    try:
        place = files("chemiscope") / "sphinx" / "static" / "chemiscope.min.js"
        return place.read_text(encoding="utf-8")
    except (ImportError, FileNotFoundError) as error:
        raise MissingExtraError("a report", "chemiscope", "report") from error


def page_script() -> str:
    """Return the JavaScript that shows the structures of a page with chemiscope."""
    return (files("uqcalc.plotting") / "viewer.js").read_text(encoding="utf-8")


def viewer_input(
    structures: Sequence[Atoms],
    properties: Mapping[str, Any],
    settings: Mapping[str, Any],
    description: str,
) -> dict[str, Any]:
    """Return the input of chemiscope's viewers, with four decimals.

    Parameters
    ----------
    structures : sequence of Atoms
        Their positions, elements and cells are shown.
    properties, settings : mapping
        As for ``chemiscope.create_input``.
    description : str

    Raises
    ------
    MissingExtraError
        If chemiscope is not installed.
    """
    try:
        import chemiscope
    except ImportError as error:
        raise MissingExtraError("a report", "chemiscope", "report") from error
    bare = [
        Atoms(one.numbers, one.positions, cell=one.cell, pbc=one.pbc)
        for one in structures
    ]
    found: dict[str, Any] = chemiscope.create_input(
        bare,
        metadata={"name": "Structures", "description": description},
        properties=dict(properties),
        environments=chemiscope.all_atomic_environments(bare, cutoff=3.0),
        settings=dict(settings),
    )
    rounded: dict[str, Any] = _rounded(found)
    return rounded


def viewer_elements(dataset: Mapping[str, Any]) -> str:
    """Return the script elements of a page with structures.

    They stand after `page_script` at the end of the page. The browser neither runs nor
    parses chemiscope and the data before they are needed.

    Parameters
    ----------
    dataset : mapping
        As from `viewer_input`.

    Raises
    ------
    MissingExtraError
        If chemiscope is not installed.
    """
    data = in_script(json.dumps(dataset, ensure_ascii=False))
    return (
        f'<script type="application/json" id="dataset">{data}</script>\n'
        f'<script type="text/plain" id="chemiscope">{as_script(viewer_script())}'
        "</script>\n<script>uq.offerStructures();</script>"
    )


def in_script(text: str) -> str:
    """Return JSON in which no tag can begin."""
    return text.replace("<", "\\u003c")


def as_script(text: str) -> str:
    """Return JavaScript in which nothing ends or nests the script element."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def untagged(text: str) -> str:
    """Return a text without the characters that begin a tag or an entity of HTML."""
    return text.translate(str.maketrans("<>&", "()+"))


def _rounded(value: Any) -> Any:
    """Return the same with four decimals, which suffice for a page."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), 4) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
