"""What a fitted signal holds, in words, ready to be shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ase.data import chemical_symbols

from uqcalc.sheet import Facts
from uqcalc.signals.card import SignalCard


def signal_facts(card: SignalCard) -> Facts:
    """Say what a fitted signal reads, and what it was fitted on."""
    unit = card.unit or "a pure number"
    rows = [
        ("risk", f"{card.risk} ({unit})"),
        ("for the backbone", card.fingerprint),
        ("elements", " ".join(chemical_symbols[z] for z in card.elements)),
        ("settings", _listed(card.settings)),
        ("fitted on", _listed(card.training)),
        *([("found", _listed(card.report))] if card.report else []),
        *[("note", note) for note in card.notes],
        ("uqcalc", f"{card.uqcalc_version} (schema {card.schema})"),
    ]
    return Facts(f"Fitted signal: {card.kind.replace('_', ' ')}", rows)


def _listed(entries: Mapping[str, Any]) -> str:
    """Return names and values; what is nested is left to the file."""
    return ", ".join(
        f"{name.replace('_', ' ')} {_short(value)}"
        for name, value in entries.items()
        if value is not None and not isinstance(value, Mapping)
    )


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
