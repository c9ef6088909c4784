"""The probes that the package brings along, by the potential's name or identity."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from uqcalc.errors import ModelError


if TYPE_CHECKING:
    from uqcalc.probe.checkpoint import Probe

SHIPPED_PROBES = {
    "default": "default.probe",
    "chgnet": "chgnet.probe",
    "sevennet": "sevennet.probe",
}


def shipped_probe(name: str) -> Probe:
    """Return the probe that the package brings for the potential ``name``.

    Raises
    ------
    ModelError
        If there is none.
    """
    if name not in SHIPPED_PROBES:
        msg = (
            f"probe must be given for the model {name!r}, got none (only "
            f"{', '.join(SHIPPED_PROBES)} come with one); fit one: "
            f"uqcalc fit labelled.xyz --model {name} -o my.probe"
        )
        raise ModelError(msg)
    from uqcalc.probe.checkpoint import Probe

    with as_file(files("uqcalc") / "data" / SHIPPED_PROBES[name]) as path:
        return Probe.load(path)


def find_probe(fingerprint: str) -> Probe | None:
    """Return the probe that ships for the model of this fingerprint, if any does."""
    from uqcalc.backbones.fingerprint import same_model

    for name, known in _fingerprints().items():
        if same_model(known, fingerprint):
            return shipped_probe(name)
    return None


@lru_cache(maxsize=1)
def _fingerprints() -> dict[str, str]:
    """Return the fingerprint on each card; the files are read once a process."""
    return {name: shipped_probe(name).card.fingerprint for name in SHIPPED_PROBES}
