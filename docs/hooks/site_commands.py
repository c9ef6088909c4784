"""The reference of the command line, read from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import typer

from uqcalc.cli import app


def commands_page() -> str:
    """Return a section for each command: what it does, its arguments and options."""
    group: Any = typer.main.get_command(app)
    context = group.context_class(group, info_name="uqcalc")
    parts = []
    if shown := _shown(group, "option"):
        parts.append("## uqcalc\n\n" + _table("option", shown, context))
    parts += [
        _section(command, context)
        for command in group.commands.values()
        if not command.hidden
    ]
    return "\n\n".join(parts)


def _section(command: Any, above: Any) -> str:
    context = command.context_class(command, info_name=command.name, parent=above)
    usage = " ".join(command.collect_usage_pieces(context))
    text = inspect.cleandoc(command.help or "").replace("\b", "")
    parts = [f"## uqcalc {command.name}", text]
    parts.append(f"```text\nuqcalc {command.name} {usage}\n```")
    for kind in ("argument", "option"):
        if shown := _shown(command, kind):
            parts.append(_table(kind, shown, context))
    if epilog := inspect.cleandoc(command.epilog or "").replace("\b", "").strip():
        parts.append(f"```text\n{epilog}\n```")
    return "\n\n".join(parts)


def _shown(command: Any, kind: str) -> list[Any]:
    """Return the parameters of one kind that help shows."""
    return [
        param
        for param in command.params
        if param.param_type_name == kind and not getattr(param, "hidden", False)
    ]


def _table(kind: str, params: Sequence[Any], context: Any) -> str:
    rows = [f"| {kind} | value | default | meaning |", "| --- | --- | --- | --- |"]
    for param in params:
        names = ", ".join(f"`{name}`" for name in _names(param, kind))
        meaning = " ".join((getattr(param, "help", None) or "").split())
        cells = (names, _value(param, context), _default(param), meaning)
        rows.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(rows)


def _names(param: Any, kind: str) -> list[str]:
    if kind == "argument":
        return [(param.name or "").upper()]
    return [*param.opts, *param.secondary_opts]


def _value(param: Any, context: Any) -> str:
    """Return what a parameter takes, as its help shows it."""
    if getattr(param, "is_flag", False) or getattr(param, "is_bool_flag", False):
        return "flag"
    if param.param_type_name == "argument":
        return "path"
    many = ", repeatable" if param.multiple else ""
    shown = param.metavar
    if shown is None:  # typer 0.29 left click, and renamed this
        name = "display_type" if hasattr(param, "display_type") else "make_metavar"
        shown = getattr(param, name)(context)
    text = str(shown).lower().removeprefix("<list[").strip("<>[].")
    return text.replace("|", ", ") + many


def _default(param: Any) -> str:
    if param.required:
        return "required"
    default = param.default
    if default is None or default is False or callable(default) or default == ():
        return "-"
    return f"`{default}`"
