"""Hooks of MkDocs: pictures, formulas, and the parts of pages that code writes.

A page asks for such a part in a line of its own: ``<!-- generated: cli -->``. Formulas
are written in LaTeX and become MathML when the site is built: browsers draw it
without a script or a font of ours.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from site_api import api_page
from site_commands import commands_page
from site_evidence import table


ROOT = Path(__file__).parents[2]
# Pictures of the repository that pages show, under pictures/ on the site.
PICTURES = ("examples/*.png", "benchmarks/results/*.png")
_PART = re.compile(r"^<!-- generated: (\w+)(?: ([\w-]+))? -->$", re.MULTILINE)
_FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL
)
_WRITERS: dict[str, Callable[[str], str]] = {
    "api": api_page,
    "cli": lambda _: commands_page(),
    "table": table,
}


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's pictures to the site."""
    for pattern in PICTURES:
        for path in sorted(ROOT.glob(pattern)):
            name = f"pictures/{path.name}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Write the parts that a page asks for."""
    return _PART.sub(lambda part: _WRITERS[part[1]](part[2] or ""), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML."""
    return _FORMULA.sub(_mathml, content)


def _mathml(formula: re.Match[str]) -> str:
    display = "block" if formula[2] == "[" else "inline"
    return convert(html.unescape(formula[3]).strip(), display=display)
