"""`uqcalc info`: print the contents of a probe, a fitted signal or an event log."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uqcalc.cli.console import reporting
from uqcalc.cli.options import JsonOption
from uqcalc.cli.probes import is_shipped, shipped_file
from uqcalc.models.named import SHIPPED_PROBES


if TYPE_CHECKING:
    from rich.table import Table

    from uqcalc.evaluation.cardinfo import Info


def _known(value: str) -> str:
    if not is_shipped(value) and not Path(value).exists():
        msg = (
            "file must be a probe, a fitted signal, an event log or one of "
            f"{', '.join(SHIPPED_PROBES)}, got {value!r}, which does not exist"
        )
        raise typer.BadParameter(msg)
    return value


def info(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            callback=_known,
            help=(
                "File of a probe, a fitted signal, a distilled head or an event log; "
                "or default, chgnet or sevennet for a probe that comes with uqcalc."
            ),
        ),
    ],
    *,
    as_json: JsonOption = False,
) -> None:
    """Print the card of a probe, signal or head, or the summary of an event log."""
    with reporting() as report, shipped_file(file) as path:
        from uqcalc.info import file_info

        found = file_info(path)
        if as_json:
            typer.echo(json.dumps(_record(path), indent=1))
        else:
            report.result(*_tables(found), fold=True)


def _tables(found: Info) -> Iterator[Table]:
    from rich.table import Table

    rows = Table(title=found.title, title_justify="left", show_header=False)
    rows.add_column(no_wrap=False)
    rows.add_column(overflow="fold")
    for name, text in found.rows:
        rows.add_row(name, text)
    yield rows
    if found.table:
        table = Table(*found.columns, title=found.caption, title_justify="left")
        for row in found.table:
            table.add_row(*row)
        yield table


def _record(path: Path) -> Any:
    """Return the content of a file: its kind and its card, or the summary of a log."""
    from uqcalc.distillation.card import FILE as HEAD
    from uqcalc.files.tensorfile import metadata_of
    from uqcalc.files.writing import strict_json
    from uqcalc.probe.card import FILE as PROBE
    from uqcalc.signals.card import FILE as SIGNAL
    from uqcalc.watching.logsummary import summarise_log

    metadata = metadata_of(path) or {}
    for kind in (HEAD, SIGNAL, PROBE):
        if kind.key in metadata:
            return strict_json({"kind": kind.name, "card": kind.card(path)})
    summary = asdict(summarise_log(path))
    summary["levels"] = {level.name: n for level, n in summary["levels"].items()}
    return strict_json({"kind": "event log"} | summary)
