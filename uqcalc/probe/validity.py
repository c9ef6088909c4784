"""What a probe is validated on, and what not, in words from its card."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from ase.data import chemical_symbols

from uqcalc.geometry.regimes import REGIMES
from uqcalc.probe.card import Card, Guarantee, RegimeCount
from uqcalc.showing import in_words
from uqcalc.targets import TARGETS


_WORDS = {
    "relaxed": "relaxed structures",
    "near-equilibrium": "near-equilibrium structures",
    "hot": "hot structures",
    "strained": "strained structures",
    "surface": "surfaces",
    "cluster": "clusters",
    "reactive": "bond breaking",
    "random": "random structures",
}
_MOST_SYMBOLS = 12
# Non-metals, metalloids and noble gases; the other elements are metals.
_NONMETALS = frozenset(
    {1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 32, 33, 34, 35, 36, 51, 52, 53, 54}
)


def validity(card: Card) -> str:
    """Return what the probe is validated on, and what not, in one sentence.

    It claims only what the guarantee of the card has counted (`uqcalc.certify`): the
    tolerance, the regimes with enough accepted groups, the elements in these groups,
    and the highest temperature if each of their structures states one. The rest is
    named as not validated: all other regimes, and ions and metals that these groups
    lack.

    Examples
    --------
    With a guarantee: "validated to 0.05 eV/Å (95 % right, P >= 0.8) on near-equilibrium
    structures of C H N O up to 600 K; not validated on bond breaking, ions, metals".
    """
    made = card.guarantee
    if made is None:
        return "not validated: the card has no guarantee (uqcalc certify makes one)"
    claim = f"validated to {_tolerance(made)} ({100 * (1 - made.risk):.3g} % right"
    if not made.regimes:
        return (
            f"{claim}) on average over the structures that certified it; not by regime "
            "(uqcalc certify again)"
        )
    rows = made.validated
    if not rows:
        return (
            f"{claim}) on average over the structures that certified it; in no regime "
            f"by itself: {_others(card, made, rows)}"
        )
    where = _listed([_WORDS.get(name, name) for name in rows])
    return (
        f"{claim}, P >= {card.suspect:g}) on {where} of {_elements(rows)}{_heat(rows)};"
        f" not validated on {_others(card, made, rows)}"
    )


def regime_states(cards: Sequence[Card]) -> dict[str, str]:
    """Return for each regime whether the probes are validated there.

    Parameters
    ----------
    cards : sequence of Card
        A probe whose card does not list the regimes of its labels is left out.

    Returns
    -------
    dict of str
        Regime (`uqcalc.geometry.regimes.REGIMES`) -> text; empty if no card lists
        regimes.

    Examples
    --------
    "near-equilibrium: validated to 0.2 eV/Å (90 % right)", "reactive: no labels", and
    with two probes "hot: forces not validated (0 wrong of 8 accepted groups), stress
    not validated (no guarantee)".
    """
    known = [card for card in cards if card.training.get("regimes_by_rule")]
    if not known:
        return {}
    return {
        name: f"{name}: "
        + ", ".join(
            (f"{TARGETS[card.target].of} " if len(known) > 1 else "")
            + _state(card, name)
            for card in known
        )
        for name in REGIMES
    }


def _state(card: Card, regime: str) -> str:
    """Return whether a probe is validated in a regime."""
    if regime not in card.training["regimes_by_rule"]:
        return "no labels"
    made = card.guarantee
    if made is None:
        return "not validated (no guarantee)"
    if not made.regimes:
        return "not validated by itself (the guarantee is on average)"
    if regime in made.validated:
        right = 100 * (1 - made.risk)
        return f"validated to {_tolerance(made)} ({right:.3g} % right)"
    row = made.regimes.get(regime)
    return f"not validated{_count(row) or ' (no accepted group)'}"


def _tolerance(made: Guarantee) -> str:
    if made.tolerance is None:
        return "its labels"
    return in_words(made.tolerance, made.unit, digits=3)


def _seen(rows: Mapping[str, RegimeCount]) -> set[int]:
    return {z for row in rows.values() for z in row.elements}


def _elements(rows: Mapping[str, RegimeCount]) -> str:
    seen = _seen(rows)
    if len(seen) > _MOST_SYMBOLS:
        return f"{len(seen)} elements"
    return " ".join(sorted(chemical_symbols[z] for z in seen))


def _heat(rows: Mapping[str, RegimeCount]) -> str:
    """Return the highest temperature, if each validated regime states it."""
    known = [row.temperature_K for row in rows.values()]
    hottest = [math.inf if t is None else t for t in known]
    return f" up to {max(hottest):.0f} K" if max(hottest) < math.inf else ""


def _others(card: Card, made: Guarantee, rows: Mapping[str, RegimeCount]) -> str:
    """Return the regimes and kinds that are not validated."""
    names = [*(n for n in made.regimes if n not in rows)]
    names += [n for n in REGIMES if n not in rows and n not in names]
    words = [_WORDS.get(n, n) + _count(made.regimes.get(n)) for n in names]
    if card.scope is None or not any(card.scope.charges):
        words.append("ions")
    if _seen(rows) <= _NONMETALS:
        words.append("metals")
    return _listed(words)


def _count(row: RegimeCount | None) -> str:
    if row is None or not row.accepted:
        return ""
    noun = "group" if row.accepted == 1 else "groups"
    return f" ({row.wrong} wrong of {row.accepted} accepted {noun})"


def _listed(words: Collection[str]) -> str:
    return ", ".join(words) or "nothing else"
