"""The sheet that facts are written on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Facts:
    """A title, rows of (name, text), and a table with a caption where there is one."""

    title: str
    rows: list[tuple[str, str]]
    caption: str = ""
    columns: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
