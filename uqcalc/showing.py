"""Values with units as texts show them: stresses in GPa."""

from __future__ import annotations

from ase import units


# Unit of results -> unit of messages, and the number of them in one unit of results.
_SHOWN = {"eV/Å³": ("GPa", 1 / units.GPa)}


def shown_in(unit: str) -> tuple[str, float]:
    """Return the unit for messages and pictures, and the factor to it.

    Stresses are shown in GPa, all other values in their own ``unit``.
    """
    return _SHOWN.get(unit, (unit, 1.0))


def in_words(value: float, unit: str, *, digits: int = 4, both: bool = False) -> str:
    """Return a value with the unit of `shown_in`.

    With ``both``, the value in ``unit`` itself follows in parentheses, if it differs:
    functions return this value and take it.

    Examples
    --------
    >>> in_words(0.5 * units.GPa, "eV/Å³"), in_words(0.05, "eV/Å")
    ('0.5 GPa', '0.05 eV/Å')
    >>> in_words(0.5 * units.GPa, "eV/Å³", both=True)
    '0.5 GPa (0.003121 eV/Å³)'
    """
    shown, factor = shown_in(unit)
    text = f"{value * factor:.{digits}g} {shown}".rstrip()
    if both and shown != unit:
        text += f" ({value:.{digits}g} {unit})"
    return text
