"""Tables, targets and figures from the cached runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, print_table, print_targets, target, write_result

from halting.cached import Cached, read_cache, traces
from halting.judging import (
    AFTER_FS,
    Outcome,
    Rule,
    Tally,
    Trace,
    best_limit,
    by_molecule,
    find_halt,
    judge,
    limits,
    proportion,
    rate,
    tally,
)
from halting.runs import FRAME_FS
from halting.strips import draw_curves, draw_strips
from uqcalc.defaults import shipped_probe
from uqcalc.watching.trigger import FRACTION, WINDOW_FS


MOST_FALSE_PER_PS = 0.01
MOST_EARLY = 0.10
# (needed, window) in frames of 5 fs
TRIGGERS = (
    (1, 1), (2, 2), (3, 3), (5, 5), (7, 7), (10, 10), (20, 20),
    (3, 5), (5, 10), (7, 10), (10, 20), (14, 20), (20, 40), (30, 40),
)  # fmt: skip
LEVELS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # limits on 1 - P(reliable)
BASELINES = ("largest force", "latent distance", "latent distance, farthest atom")
COMMITTEE = "committee of four"
# of the monitor: needed and window in frames, half of the last 50 fs
SHIPPED = (round(FRACTION * WINDOW_FS / FRAME_FS), round(WINDOW_FS / FRAME_FS))
# accuracy of a known true error: a random factor exp(+-s)
NOISES = (0.0, 0.05, 0.1, 0.2, 0.3)


def all_rules(tuning: Sequence[Trace]) -> list[dict[str, Any]]:
    """Return the outcomes of each trigger and level on the tuning runs."""
    rows = []
    for needed, window in TRIGGERS:
        for level in LEVELS:
            rule = Rule(level, needed, window)
            rows.append({"rule": rule, **counts(tally(tuning, rule))})
    return rows


def counts(result: Tally) -> dict[str, float]:
    """Return the shares for the choice."""
    return {
        "right": result.share("right"),
        "early": result.share("early"),
        "late_or_missed": result.share("late", "missed"),
        "false_per_ps": result.false_per_ps,
    }


def choose(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the rule with most right halts within the limits on early and false halts.

    Among equally good rules it is the one with the fewest early halts.
    """
    allowed = [
        row
        for row in rows
        if row["early"] <= MOST_EARLY and row["false_per_ps"] <= MOST_FALSE_PER_PS
    ]
    return max(allowed, key=lambda row: (row["right"], -row["early"]))


def leads(outcomes: Sequence[Outcome]) -> list[float]:
    """Return the quartiles of the lead of the halts in the window, in fs."""
    found = [o.lead_fs for o in outcomes if o.name == "right"]
    return [float(q) for q in np.quantile(found or [np.nan], [0.25, 0.5, 0.75])]


def detector_row(name: str, test: Sequence[Trace], rule: Rule) -> dict[str, Any]:
    """Return one row of the main table."""
    result = tally(test, rule)
    row: dict[str, Any] = {"detector": name, "limit": rule.limit}
    for key, names in (
        ("right", ("right",)),
        ("early", ("early",)),
        ("late or missed", ("late", "missed")),
    ):
        share, low, high = proportion(result.heated, *names)
        row[key] = share
        row[f"{key}, 95 %"] = [low, high]
    low, high = by_molecule(
        [t for t in test if t.kind == "heated"],
        lambda drawn: tally(drawn, rule).share("right"),
    )
    row["right, 95 % over molecules"] = [low, high]
    row["lead_fs quartiles"] = leads(result.heated)
    each, low, high = rate(result.false_halts, result.watched_ps)
    row |= {
        "false_per_ps": each,
        "false_per_ps, 95 %": [low, high],
        "false_halts": result.false_halts,
        "watched_ps": result.watched_ps,
    }
    return row


def ahead(
    ours: tuple[Sequence[Trace], Rule],
    theirs: tuple[Sequence[Trace], Rule],
    draws: int = 2000,
) -> list[float]:
    """Return a 95 % interval of the difference in right halts, by drawing molecules."""
    kept = [
        [(t.molecule, judge(t, rule).name) for t in found if t.kind == "heated"]
        for found, rule in (ours, theirs)
    ]
    failing = [
        (molecule, (a == "right") - (b == "right"))
        for (molecule, a), (_, b) in zip(*kept, strict=True)
        if a not in {"none", "false"}
    ]
    names = sorted({molecule for molecule, _ in failing})
    members = {n: [d for molecule, d in failing if molecule == n] for n in names}
    rng = np.random.default_rng(0)
    drawn = [
        np.mean([d for n in rng.choice(names, len(names)) for d in members[n]])
        for _ in range(draws)
    ]
    return [float(q) for q in np.quantile(drawn, [0.025, 0.975])]


def error_when_halted(
    test: Sequence[Cached], name: str, rule: Rule, frames: int = 10
) -> list[float]:
    """Return the quartiles of the true error over the 50 fs before a heated run halts.

    Do not use it for the committee, which was not evaluated after a failure.
    """
    found = []
    for run in test:
        halt = find_halt(run.arrays[name], rule)
        if run.spec.kind == "heated" and halt is not None:
            recent = run.arrays["error"][max(0, halt - frames + 1) : halt + 1]
            found.append(np.nanmean(recent))
    return [float(q) for q in np.quantile(found, [0.25, 0.5, 0.75])]


def equal_false(
    test: Sequence[Trace], trigger: tuple[int, int], most: float
) -> dict[str, float]:
    """Return the best outcome of a detector with a limit chosen on the test runs."""
    rule, result = best_limit(test, *trigger, most)
    _, strict = best_limit(test, *trigger, most, MOST_EARLY)
    few = {"right_with_few_early": strict.share("right")}
    return {"limit": rule.limit, **counts(result), **few}


def knowing(tuning: Sequence[Cached], noise: float, seed: int = 0) -> list[Trace]:
    """Return the true error as a detector, times a random factor for each molecule."""
    rng = np.random.default_rng(seed)
    names = sorted({run.spec.molecule for run in tuning})
    off = dict(zip(names, rng.normal(size=len(names)), strict=True))
    return [
        run.trace(run.arrays["error"] * np.exp(noise * off[run.spec.molecule]))
        for run in tuning
    ]


def oracle_rows(
    test: Sequence[Cached], trigger: tuple[int, int], seeds: int = 5
) -> list[dict[str, Any]]:
    """Return the outcomes of the true error, known with several accuracies."""
    rows = []
    for noise in NOISES:
        found = [
            equal_false(knowing(test, noise, seed), trigger, MOST_FALSE_PER_PS)
            for seed in range(seeds if noise else 1)
        ]
        rows.append(
            {
                "detector": "true error" + (f", off by {noise:.0%}" if noise else ""),
                **{k: float(np.mean([f[k] for f in found])) for k in found[0]},
            }
        )
    return rows


def curve(test: Sequence[Trace], trigger: tuple[int, int]) -> np.ndarray:
    """Return (false halts per ps, early, right) for every limit."""
    results = [tally(test, Rule(float(x), *trigger)) for x in limits(test, 200)]
    return np.array(
        [(r.false_per_ps, r.share("early"), r.share("right")) for r in results]
    )


def _is_known(runs: Sequence[Cached], name: str) -> bool:
    return not any(np.isnan(trace.risk).all() for trace in traces(runs, name))


def about_members(folders: Sequence[Path]) -> list[str]:
    """Return the errors of the members of the committee."""
    notes = []
    for folder in folders:
        config = json.loads((folder / "backbone.json").read_text(encoding="utf-8"))
        trained = config["training"]
        error = trained["validation"]["300 K"]["force_rmse_mev_per_angstrom"]
        notes.append(
            f"committee member of seed {config['seed']}: {trained['minutes']} min, "
            f"force RMSE at 300 K {error} meV/Å (the bundled one: 80.92)"
        )
    return notes


def report(folder: Path, members: Sequence[Path], seeds: int) -> None:
    """Judge on the test runs, write and draw; limits are those of the tuning runs.

    All detectors have the trigger of the monitor. Without ``members`` there is no
    committee, and without training frames of the potential no latent distance.
    """
    tuning, test = (
        read_cache(folder, purpose, seeds, committee=bool(members))
        for purpose in ("tuning", "test")
    )
    card = 1 - shipped_probe("default").card.unreliable
    tried = all_rules(traces(tuning, "probe"))
    chosen = choose(tried)
    at_card = choose([row for row in tried if row["rule"].limit == card])
    # SUSPECT is 0.5 and UNRELIABLE is 1
    whole, shipped = Rule(0.5, *SHIPPED), Rule(card, *SHIPPED)
    verdicts, ours = traces(test, "verdict"), traces(test, "probe")
    rows = [
        detector_row("verdict, as shipped", verdicts, whole),
        detector_row("probe, card's level", ours, shipped),
        detector_row("probe, trigger chosen on tuning runs", ours, chosen["rule"]),
    ]
    rows[0]["true error when halted, quartiles"] = error_when_halted(
        test, "verdict", whole
    )
    known = [name for name in BASELINES if _is_known(test, name)]
    names = ["probe", *([COMMITTEE] if members else []), *known]
    for name in names:
        rule, _ = best_limit(traces(tuning, name), *SHIPPED, MOST_FALSE_PER_PS)
        theirs = traces(test, name)
        rows.append(detector_row(f"{name}, tuned", theirs, rule))
        pair = (verdicts, whole), (theirs, rule)
        rows[-1]["right halts of the first row minus these, 95 %"] = ahead(*pair)
    equal = [
        {
            "detector": name,
            **equal_false(traces(test, name), SHIPPED, MOST_FALSE_PER_PS),
        }
        for name in names
    ]
    oracle = oracle_rows(test, SHIPPED)
    targets = [
        target("halts by 100 fs after the failure began, early ones included",
               rows[0]["right"] + rows[0]["early"], 0.95, at_most=False),
        target("early halts", rows[0]["early"], MOST_EARLY),
        target("false halts per ps", rows[0]["false_per_ps"], MOST_FALSE_PER_PS),
        *(
            target(
                f"right halts, {name}, minus ours, at equal false halts{also}",
                entry[key] - equal[0][key],
                -1e-9,
            )
            for key, also in (
                ("right", ""),
                ("right_with_few_early", " and at most 10 % early"),
            )
            for name, entry in zip(names[1:], equal[1:], strict=True)
        ),
    ]  # fmt: skip
    path = write_result(
        "halts_when_it_should",
        seeds=sorted({run.spec.seed for run in test}),
        rows=rows,
        targets=targets,
        notes=[
            "heated: 300 to 2500 K in 5 ps, 0.5 fs steps; steady: 300 K, 1 fs steps",
            *about_members(members),
        ],
        more={
            "chosen": plain(chosen),
            "chosen_at_the_cards_level": plain(at_card),
            "tried_on_tuning_runs": [plain(row) for row in tried],
            "best_on_the_test_runs_at_equal_false_halts": equal,
            "if_the_true_error_were_known": oracle,
            "runs": [about(run) for run in test],
        },
    )
    show(rows, equal, oracle, targets)
    draw_strips(test, whole, RESULTS)
    curves = {name: curve(traces(test, name), SHIPPED) for name in names}
    draw_curves(curves, MOST_FALSE_PER_PS, RESULTS)
    print(path)


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the rule in words."""
    rule: Rule = row["rule"]
    return {
        "limit": rule.limit,
        "needed_fs": rule.needed * FRAME_FS,
        "window_fs": rule.window * FRAME_FS,
        **{k: v for k, v in row.items() if k != "rule"},
    }


def about(run: Cached) -> dict[str, Any]:
    """Return a summary of one run."""
    error = run.arrays["error"]
    onset = run.onset
    return {
        "run": run.spec.name,
        "frames": len(error),
        "truth_not_converged": int(np.isnan(error).sum()),
        "fails_at_fs": None if onset is None else (onset + 1) * FRAME_FS,
        "mean_error_eV_per_A": float(np.nanmean(error)),
        "noticed_by_fs": None if onset is None else onset * FRAME_FS + AFTER_FS,
    }


def show(
    rows: Sequence[dict[str, Any]],
    equal: Sequence[dict[str, Any]],
    oracle: Sequence[dict[str, Any]],
    targets: Sequence[dict[str, Any]],
) -> None:
    """Print all tables."""
    columns = ("detector", "limit", "right", "right, 95 %", "early", "late or missed",
               "lead_fs quartiles", "false_per_ps", "false_per_ps, 95 %")  # fmt: skip
    print_table("test runs", [brief(r) for r in rows], {c: c for c in columns})
    columns = ("detector", "limit", "right", "early", "late_or_missed", "false_per_ps",
               "right_with_few_early")  # fmt: skip
    title = "best limit on the test runs themselves"
    print_table(title, [*equal, *oracle], {c: c for c in columns})
    print_targets(targets)


def brief(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with lists of numbers as short texts."""
    return {
        key: " to ".join(f"{v:.3g}" for v in value)
        if isinstance(value, list)
        else value
        for key, value in row.items()
    }
