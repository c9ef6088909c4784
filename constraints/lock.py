"""Lock the packages of the environments that the Makefile builds.

`make lock` writes one file per environment, `py311.txt` for Python 3.11 and
`py311-sevennet.txt` for the environment of SevenNet beside it, and the same for those
of further tests that exist. pip takes them as constraints: they bind the Makefile's
environments, and nobody who installs uqcalc.

Locked is what uqcalc asks for, directly or through others. Left out are the CUDA
libraries of some builds of torch, which other builds of the same release lack, and
local versions (`2.13.0+cpu`) are cut, so that a lock holds on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


STAMP = Path(sys.prefix) / ".installed"
"""Left by the Makefile in its environments: the lock's path, and the extras."""


def asked_for(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
    """Yield what an installed package asks for here, with these extras."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        environments = [{**default_environment(), "extra": e} for e in extras | {""}]
        if marker is None or any(marker.evaluate(e) for e in environments):
            yield requirement


def of_one_build(name: str, other: str) -> bool:
    """Whether only some builds of torch ask for this package."""
    return name == "torch" and other.startswith(("cuda-", "nvidia-", "triton"))


def installed(extras: frozenset[str]) -> dict[str, str]:
    """Return the version of every package that uqcalc with these extras leads to."""
    versions: dict[str, str] = {}
    known = {canonicalize_name(d.name) for d in metadata.distributions()}
    waiting, seen = [("uqcalc", extras)], set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        versions[name] = metadata.version(name).partition("+")[0]
        for requirement in asked_for(name, wanted):
            other = canonicalize_name(requirement.name)
            if other in known and not of_one_build(name, other):
                waiting.append((other, frozenset(requirement.extras)))
    del versions["uqcalc"]
    return dict(sorted(versions.items()))


def locked(path: Path) -> dict[str, str]:
    """Return the versions that a lock file names."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    pairs = (line.split("==") for line in lines if line)
    return {canonicalize_name(name): version for name, version in pairs}


def differences(found: dict[str, str], lock: dict[str, str]) -> list[str]:
    """Return a line for every package whose version is not the locked one."""
    return [
        f"{name}: {version} is installed, {lock.get(name, 'no version')} is locked"
        for name, version in found.items()
        if lock.get(name) != version
    ]


def stamped(stamp: Path = STAMP) -> tuple[Path, frozenset[str]] | None:
    """Return the lock of this environment and its extras, if the Makefile made it."""
    words = stamp.read_text().split() if stamp.exists() else []
    if len(words) != 2:
        return None
    return Path(__file__).parent / words[0], frozenset(words[1].split(","))


def main() -> None:
    """Write the lock of the environment that runs this."""
    found = stamped()
    if found is None:
        sys.exit(f"{sys.prefix} must be made by the Makefile; say `make lock`")
    path, extras = found
    versions = installed(extras)
    head = "# Written by `make lock`; see constraints/lock.py.\n"
    path.write_text(head + "".join(f"{n}=={v}\n" for n, v in versions.items()))
    print(f"{path.name}: {len(versions)} packages")  # noqa: T201


if __name__ == "__main__":
    main()
