"""One geometry in two of training, calibration and test: the report would flatter."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

from ase import Atoms

from uqcalc.errors import LabelError, LabelWarning
from uqcalc.probe.labelling.seen import Geometries


_NAMED = 5  # pairs of frames


def drop_leaks(
    sets: Sequence[Sequence[Atoms]], exclude: Collection[str]
) -> list[set[int]]:
    """Return which frames of each set to leave out, so that no two share a geometry.

    A frame that is in a later set, too, is left out of the earlier one: the test stays
    whole, and training loses. What a file rounds, and a structure that was moved or
    turned as a whole, is the same one (`uqcalc.probe.labelling.seen`).

    Parameters
    ----------
    sets : two or three sequences of Atoms
        Training, calibration where there is one, and test.
    exclude : collection of str
        With "duplicate" in it they are left out, else refused.

    Raises
    ------
    LabelError
        Naming the frames.

    Warns
    -----
    LabelWarning
        Naming the frames that are left out, and where.
    """
    names = (
        ("training", "calibration", "test") if len(sets) > 2 else ("training", "test")
    )
    dropped: list[set[int]] = [set() for _ in sets]
    later = Geometries()
    for place in reversed(range(len(sets))):
        own = enumerate(sets[place])
        dropped[place] |= {index for index, frame in own if later.find(frame)}
        later.add(sets[place])
    count = sum(map(len, dropped))
    if not count:
        return dropped
    listed = "; ".join(
        f"{name} frames {_listed(rows)}"
        for name, rows in zip(names, dropped, strict=True)
        if rows
    )
    if "duplicate" not in exclude:
        msg = (
            "training, calibration and test frames must be different structures, got "
            f"{count} in two of them ({listed}); divide them again, or leave these out "
            "with exclude=['duplicate'] (--exclude duplicate)"
        )
        raise LabelError(msg)
    msg = (
        f"{count} frames are in a later set, too, and are left out of the earlier one, "
        f"so that the test stays as it is: {listed}"
    )
    warnings.warn(msg, LabelWarning, stacklevel=4)
    return dropped


def _listed(rows: Collection[int]) -> str:
    shown = sorted(rows)
    more = ", ..." if len(shown) > _NAMED else ""
    return f"{', '.join(map(str, shown[:_NAMED]))}{more}"
