"""Values with units for texts (stresses in GPa), and text from other sources."""

from __future__ import annotations

import unicodedata

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


def harmless(text: str) -> str:
    r"""Return text whose control characters are spelled out, such as ``\x1b``.

    Names in files, reasons in logs and messages of readers are foreign: an escape
    sequence among them could hide a line, or rename a window. Line ends and tabs stay.
    """
    return "".join(
        letter
        if letter in "\n\t" or unicodedata.category(letter) not in {"Cc", "Cf", "Cs"}
        else letter.encode("unicode_escape", "surrogatepass").decode()
        for letter in text
    )
