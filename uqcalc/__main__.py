"""`python -m uqcalc`: the same as the command `uqcalc`."""

from __future__ import annotations

from uqcalc.cli import main


if __name__ == "__main__":
    main()
