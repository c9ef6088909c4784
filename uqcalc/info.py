"""The content of a file of uqcalc as text: probe, head, fitted signal or log."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase.data import chemical_symbols

from uqcalc.asking import asks_words
from uqcalc.errors import RecordError
from uqcalc.evaluation.cardinfo import Info, card_info
from uqcalc.files.tensorfile import metadata_of
from uqcalc.records import Level
from uqcalc.showing import in_words
from uqcalc.signals.card import FILE as SIGNAL_FILE, SignalCard
from uqcalc.watching.logsummary import LogSummary, summarise_log


if TYPE_CHECKING:
    from uqcalc.distillation.card import HeadCard
    from uqcalc.perturbation.card import PerturbationCard


def file_info(path: str | os.PathLike[str]) -> Info:
    """Return what a probe, distilled head, fitted signal or event log contains.

    The kind of the file is recognised by its content.

    Raises
    ------
    RecordError
        If the file is none of these.
    """
    kind = _kind(Path(path))
    if kind == "probe":
        return _tensor_file_info(path)
    return log_info(summarise_log(path), Path(path).name)


def _tensor_file_info(path: str | os.PathLike[str]) -> Info:
    """Return the card of a file of tensors; a file without a card counts as a probe."""
    from uqcalc.distillation.card import FILE as HEAD_FILE, HeadCard
    from uqcalc.perturbation.card import FILE as NOISE_FILE, PerturbationCard
    from uqcalc.probe.card import FILE as PROBE_FILE, Card

    metadata = metadata_of(path) or {}
    if HEAD_FILE.key in metadata:
        return head_info(HeadCard.from_dict(HEAD_FILE.card(path)))
    if NOISE_FILE.key in metadata:
        card = PerturbationCard.from_dict(NOISE_FILE.card(path))
        return perturbation_info(card)
    if SIGNAL_FILE.key in metadata:
        return signal_info(SignalCard.from_dict(SIGNAL_FILE.card(path)))
    return card_info(Card.from_dict(PROBE_FILE.card(path)))


def _kind(path: Path) -> str:
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
    if start[8:] == b"{" and path.stat().st_size >= int.from_bytes(
        start[:8], "little"
    ):  # safetensors: the length of a JSON header, and the header
        return "probe"
    if start[:1] == b"{":
        return "log"
    what = "a folder" if path.is_dir() else "something else"
    msg = (
        "file must be a probe (safetensors) or an event log (JSON lines), got "
        f"{path}, which is {what if start or path.is_dir() else 'empty or not there'}; "
        "pass a probe of uqcalc fit, or a log of uqcalc run or of a Monitor"
    )
    raise RecordError(msg)


def perturbation_info(card: PerturbationCard) -> Info:
    """Return the layers of a perturbation, and its scores on held-out frames."""
    report, training = card.report, card.training
    rows = [
        ("gives", "members of the potential, for FunctionalSpread(file)"),
        ("for the backbone", card.fingerprint),
        ("elements", " ".join(chemical_symbols[z] for z in card.elements)),
        ("layers", ", ".join(card.layers)),
        ("noise", f"{card.dimension} numbers for each {card.noise}"),
    ]
    if "crps_forces_eV_per_A" in report:
        crps, mae = report["crps_forces_eV_per_A"], report["mae_forces_eV_per_A"]
        rows.append(
            (
                "held-out forces",
                f"CRPS {1000 * crps:.1f} meV/Å; mean absolute error of the potential "
                f"{1000 * mae:.1f} meV/Å",
            )
        )
    rows.append(("trained on", f"{_known(training, 'frames')} frames"))
    rows.append(("uqcalc", card.uqcalc_version or "not stated"))
    return Info("Perturbation", rows)


def head_info(card: HeadCard) -> Info:
    """Return the backbone of a distilled head, and its errors on held-out frames."""
    report, training = card.report, card.training
    rows = [
        ("gives", "direct forces, for ForceDelta(head=...); experimental"),
        ("for the backbone", card.fingerprint),
        ("elements", " ".join(chemical_symbols[z] for z in card.elements)),
        ("cutoff", f"{card.cutoff:g} Å"),
        (
            "frames",
            f"{_known(training, 'frames')}, held out {_known(training, 'held_out')}",
        ),
        (
            "on these",
            f"RMSE {_known(report, 'rmse_ev_per_angstrom')} eV/Å of forces of "
            f"{_known(report, 'force_rms_ev_per_angstrom')}, R² {_known(report, 'r2')}",
        ),
        ("uqcalc", card.uqcalc_version or "not stated"),
    ]
    return Info("Distilled head", rows)


def _known(entries: Mapping[str, Any], name: str) -> str:
    value = entries.get(name)
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value) if isinstance(value, int) else "not stated"


def log_info(log: LogSummary, name: str = "Run") -> Info:
    """Return the settings, length, levels, end and worst steps of a run."""
    run = log.run
    probe = run.get("probe") or {}
    steps = "none yet"
    if log.last_step is not None:
        steps = f"{log.first_step} to {log.last_step}"
        steps += "" if log.time_fs is None else f", {log.time_fs:g} fs"
    levels = ", ".join(f"{n} {level.name}" for level, n in log.levels.items())
    levels += f", {log.unjudged} not judged" if log.unjudged else ""
    rows = [
        ("ended", _how(log)),
        ("steps", steps),
        ("judged", levels),
        *_thinned_rows(log),
        *_halt_rows(log),
        *[
            (f"rewind {n}", f"step {r['step']} to {r['to_step']}: {r['reason']}")
            for n, r in enumerate(log.rewinds, start=1)
        ],
        ("structure", str(run.get("formula", "not stated"))),
        ("dynamics", _dynamics(run)),
        ("backbone", str(run.get("backbone", "not stated"))),
        ("limits on the risk", _limits(run)),
        *([("guarantee", log.guarantee)] if log.guarantee else []),
        *([("probe for", _target(probe))] if probe else []),
        *_flagged_rows(log),
        *([("warnings", str(log.warnings))] if log.warnings else []),
        *([("to ask the reference", asks_words(log.asks))] if log.asks else []),
        *[
            (f"asked {n}", f"step {record['step']}: {record.get('words', '')}")
            for n, record in enumerate(log.asked, start=1)
        ],
        *([("sessions", str(log.sessions))] if log.sessions > 1 else []),
        ("versions", ", ".join(f"{k} {v}" for k, v in log.versions.items())),
        *_input_rows(run.get("about") or {}),
    ]
    columns = ("step", "time (fs)", "T (K)", "level", "why", "worst atoms")
    table = tuple(_worst_row(record) for record in log.worst)
    return Info(name, rows, "Worst steps", columns, table)


def _how(log: LogSummary) -> str:
    if log.end is None:
        return (
            f"not yet, or killed after step {log.last_step}: the log has no end record"
        )
    if _ended_by_halt(log):
        return f"halted: {log.end.get('reason', 'no reason given')}"
    words = {True: ", converged", False: ", not converged", None: ""}
    step = log.end.get("step")
    return f"finished at step {step}{words[log.end.get('converged')]}"


def _thinned_rows(log: LogSummary) -> list[tuple[str, str]]:
    if log.log_every == 1:
        return []
    text = (
        f"every {log.log_every} steps; also UNRELIABLE steps, changes of the level and "
        "the last step"
    )
    return [("logged", text)]


def _halt_rows(log: LogSummary) -> list[tuple[str, str]]:
    """Return a row for each halt; none if the only halt is the end of the log."""
    if not log.halts or (len(log.halts) == 1 and _ended_by_halt(log)):
        return []
    return [(f"halt {n}", str(h["reason"])) for n, h in enumerate(log.halts, start=1)]


def _ended_by_halt(log: LogSummary) -> bool:
    return log.end is not None and log.end["how"] == "halted"


def _dynamics(run: Mapping[str, Any]) -> str:
    timestep = run.get("timestep_fs")
    name = str(run.get("dynamics", "not stated"))
    return name if timestep is None else f"{name}, {timestep:g} fs a step"


def _limits(run: Mapping[str, Any]) -> str:
    thresholds = run.get("policy", {}).get("thresholds", ())
    return "; ".join(
        f"{t['signal']}: SUSPECT above {_limit(t['suspect'])}"
        f"{' and outside its guarantee' if t.get('promise') else ''}, UNRELIABLE above "
        f"{_limit(t['unreliable'])}"
        for t in thresholds
    )


def _limit(value: float | None) -> str:
    return "infinity" if value is None else f"{value:.4g}"


def _target(probe: Mapping[str, Any]) -> str:
    boundary = in_words(probe["boundary"], probe.get("unit", ""))
    return f"{probe['target']} within {boundary}"


def _flagged_rows(log: LogSummary) -> list[tuple[str, str]]:
    if log.end is None or "flagged_written" not in log.end:
        return []
    written = log.end["flagged_written"]
    left_out = max(0, log.levels[Level.UNRELIABLE] - written)
    return [("flagged frames", f"{written} written, {left_out} left out")]


def _input_rows(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the parts of the run file that the header of the log contains."""
    rows = []
    for key, value in about.get("input", {}).items():
        text = (
            ", ".join(f"{k} {v}" for k, v in value.items())
            if isinstance(value, Mapping)
            else str(value)
        )
        rows.append((f"input: {key}", text))
    return rows


def _worst_row(record: Mapping[str, Any]) -> tuple[str, ...]:
    readings = record["readings"]
    risks = [
        f"{name} {'NaN' if risk is None else f'{risk:.3g}'}"
        for name, risk in readings.items()
    ]
    time, temperature = record["time_fs"], record.get("temperature_K")
    return (
        str(record["step"]),
        "" if time is None else f"{time:g}",
        "" if temperature is None else f"{temperature:.0f}",
        record["level"],
        "; ".join(record.get("reasons") or risks),
        " ".join(map(str, record.get("worst_atoms", ()))),
    )


def signal_info(card: SignalCard) -> Info:
    """Return the risk, settings and training set of a fitted signal."""
    unit = card.unit or "a pure number"
    rows = [
        ("risk", f"{card.risk} ({unit})"),
        ("for the backbone", card.fingerprint),
        ("elements", " ".join(chemical_symbols[z] for z in card.elements)),
        ("settings", _listed(card.settings)),
        ("fitted on", _listed(card.training)),
        *([("found", _listed(card.report))] if card.report else []),
        *[("note", note) for note in card.notes],
        ("uqcalc", f"{card.uqcalc_version} (schema {card.schema})"),
    ]
    return Info(f"Fitted signal: {card.kind.replace('_', ' ')}", rows)


def _listed(entries: Mapping[str, Any]) -> str:
    """Return names and values; nested entries are left out."""
    return ", ".join(
        f"{name.replace('_', ' ')} {_short(value)}"
        for name, value in entries.items()
        if value is not None and not isinstance(value, Mapping)
    )


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
