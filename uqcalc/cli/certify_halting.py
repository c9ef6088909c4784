"""`uqcalc certify-halting`: a guarantee from finished runs with true errors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uqcalc.cli.certify import share
from uqcalc.cli.console import reporting, usage_errors
from uqcalc.cli.options import ForcesKey, QuietOption, StressKey, creatable
from uqcalc.cli.probes import ProbeOption, card_of


if TYPE_CHECKING:
    from uqcalc.policy import Policy


def _positive(value: float | None) -> float | None:
    if value is not None and not value > 0:
        msg = f"must be above 0, got {value:g}"
        raise typer.BadParameter(msg)
    return value


RunsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        exists=True,
        dir_okay=False,
        help="One file for each run: annotated frames with a reference, or an "
        "event log NAME.jsonl with its errors in NAME.errors.jsonl.",
    ),
]
ToleranceOption = Annotated[
    str,
    typer.Option(
        metavar="ERROR",
        help="A run fails if its error stays above this: "
        '"200 meV/angstrom", or a number in eV/angstrom (for a stress "1 GPa", or in '
        "eV/angstrom^3).",
    ),
]
TargetOption = Annotated[
    str,
    typer.Option(
        metavar="forces|stress",
        help="Which error makes a run fail; stress is for runs whose cell moves.",
    ),
]
AlphaOption = Annotated[
    float,
    typer.Option(
        callback=share,
        help="Largest share of further runs that fails without a halt in time.",
    ),
]
ConfidenceOption = Annotated[
    float,
    typer.Option(
        callback=share, help="Probability with which the guarantee is to hold."
    ),
]
AverageOption = Annotated[
    bool,
    typer.Option(
        "--on-average",
        help="Guarantee on average over draws of the runs, without a confidence: it "
        "needs fewer runs.",
    ),
]
FailingOption = Annotated[
    bool,
    typer.Option("--only-failing", help="Let --alpha be a share of the failing runs."),
]
TimestepOption = Annotated[
    float | None,
    typer.Option(
        metavar="FS",
        callback=_positive,
        help="Time between annotated frames in fs, if the frames do not contain it.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=creatable,
        help="JSON file to write the guarantee to.",
    ),
]


def certify_halting(  # noqa: PLR0913  (one option each)
    runs: RunsArgument,
    tolerance: ToleranceOption,
    output: OutputOption = None,
    *,
    alpha: AlphaOption = 0.1,
    confidence: ConfidenceOption = 0.95,
    on_average: AverageOption = False,
    only_failing: FailingOption = False,
    target: TargetOption = "forces",
    probe: ProbeOption = None,
    timestep: TimestepOption = None,
    forces_key: ForcesKey = "REF_forces",
    stress_key: StressKey = "REF_stress",
    quiet: QuietOption = False,
) -> None:
    """Find limits with which failing runs are halted in time, with a guarantee.

    Of further runs like RUN..., at most a share ALPHA fails without a halt in time.
    Each run counts once. The limits are those of the policy, or stricter ones if these
    do not suffice. Annotated frames do not name their limits: --probe does. For 10 % at
    95 % confidence, 29 runs are needed, and more if some of them fail without a halt.
    """
    with reporting(quiet=quiet) as report:
        import uqcalc
        from uqcalc.quantities import parse_quantity

        if target not in ("forces", "stress"):
            msg = f"must be forces or stress, got {target!r}"
            raise typer.BadParameter(msg, param_hint="--target")
        with usage_errors("--tolerance"):
            allowed = parse_quantity(tolerance, target, "tolerance")
        found = uqcalc.certify_halting(
            runs,
            tolerance=allowed,
            alpha=alpha,
            confidence=None if on_average else confidence,
            only_failing=only_failing,
            policy=_policy(probe),
            timestep_fs=timestep,
            target=target,
            forces_key=forces_key,
            stress_key=stress_key,
        )
        report.result(str(found))
        if output is not None:
            report.result(f"wrote {found.save(output)}")


def _policy(probe: str | None) -> Policy | None:
    """Return the policy of a probe's cutoffs; None for that of the logs."""
    return None if probe is None else card_of(probe).policy()
