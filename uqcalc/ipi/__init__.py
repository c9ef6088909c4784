"""i-PI with a judged potential: a client for its sockets, and a driver of its own."""

from __future__ import annotations

from uqcalc.ipi.client import IpiClient


__all__ = ["IpiClient"]
