"""`uqcalc info`: what a probe, a fitted signal or an event log holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import errors_as_messages, out


def info(
    file: Annotated[Path, typer.Argument(help="A probe, a signal, or an event log.")],
) -> None:
    """Print the card of a probe or of a signal, or how a run went and ended."""
    from rich.table import Table

    with errors_as_messages():
        from uqcalc.info import file_facts

        facts = file_facts(file)
    rows = Table(title=facts.title, title_justify="left", show_header=False)
    for name, text in facts.rows:
        rows.add_row(name, text)
    out().print(rows)
    if facts.table:
        table = Table(*facts.columns, title=facts.caption, title_justify="left")
        for row in facts.table:
            table.add_row(*row)
        out().print(table)
