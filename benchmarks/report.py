"""Measure how long a report of 100 000 steps takes to open in a browser.

    python benchmarks/report.py [--rounds 7] [--other PAGE]

The run is generated: 100 000 logged steps and 277 saved frames of 21 atoms. Each round
opens the page at its top and at its structures, in a new tab. ``--other`` is a
page of the same run by another version of uqcalc (``--keep PAGE`` writes one); the two
pages take turns. Chromium renders WebGL in software. Times are in seconds from the
start of the navigation.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import print_table, print_targets, target, water_box, write_result

import uqcalc
from uqcalc.annotating.frames import append_frame


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browsing import chromium, sized, wait_for
from viewings import RUN, annotated, chances, write_log


STEPS, FRAMES, ATOMS = 100_000, 277, 21
QUIET_S = 1.5  # the main thread is free if so long no task takes more than 50 ms
# Records the first animation frame with each part; it does not change the page. The
# viewer counts from the frame after its loading, when it has been drawn.
WATCH = """
  const seen = window.seen = { tasks: [], blocked: 0 };
  new PerformanceObserver(list => {
    for (const task of list.getEntries()) {
      seen.tasks.push([task.startTime, task.duration]);
    }
  }).observe({ type: "longtask", buffered: true });
  const look = () => {
    if (document.querySelector("#next, .plot")) { seen.text ??= performance.now(); }
    if (document.querySelector(".plot .main-svg .scatterlayer path")) {
      seen.curves ??= performance.now();
    }
    if (seen.loaded) { seen.viewer ??= performance.now(); }
    if (typeof uq !== "undefined" && uq.viewer) { seen.loaded ??= performance.now(); }
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
"""
FREE = f"""
  const end = Math.max(0, ...seen.tasks.map(([start, length]) => start + length));
  return document.readyState === "complete" && seen.curves
    && performance.now() > Math.max(end, seen.curves) + 1000 * {QUIET_S}
    && Math.max(end, seen.curves);
"""


def write_run(folder: Path) -> Path:
    """Write the log and the saved frames of the generated run; return the log."""
    rng = np.random.default_rng(0)
    p = chances(STEPS)
    water = water_box(ATOMS)
    run = RUN | {"formula": str(water.symbols)}
    log = write_log(folder / "run.jsonl", p, halt="25 of 50 frames UNRELIABLE", run=run)
    low = np.flatnonzero(p < 0.5)
    even = np.linspace(0, STEPS - 1, FRAMES - len(low)).astype(int)
    for step in sorted({*low.tolist(), *even.tolist()}):
        frame = annotated(water, step, float(p[step]), rng)
        append_frame(folder / "run_flagged.xyz", frame)
    return log.path


def opened(browser: Any, page: Path, place: str) -> dict[str, float | None]:
    """Open a page in a new tab; return when each part was visible, and the page free.

    Parameters
    ----------
    browser : WebDriver
    page : Path
    place : {"top", "structures"}
        Where the page is opened: at its beginning, or at its structures.
    """
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    sized(browser, 1280)
    added = browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": WATCH}
    )
    fragment = "" if place == "top" else f"#{place}"
    browser.get(page.as_uri() + fragment)
    if place == "structures":
        wait_for(browser, "return seen.viewer", 300)
    free = wait_for(browser, FREE, 300)
    seen = browser.execute_script("return seen")
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    browser.close()
    browser.switch_to.window(first)
    times = {name: seen.get(name) for name in ("text", "curves", "viewer")}
    times |= {"free": free, "longest task": max(t[1] for t in seen["tasks"])}
    return {k: None if v is None else v / 1000 for k, v in times.items()}


def measure(pages: Mapping[str, Path], rounds: int) -> list[dict[str, Any]]:
    """Return one row for each opening; the pages take turns."""
    rows = []
    with chromium() as browser:
        for page in pages.values():  # fills the caches of the machine
            opened(browser, page, "structures")
        for number in range(rounds):
            order = list(pages) if number % 2 else list(pages)[::-1]
            for place in ("top", "structures"):
                for name in order:
                    load = Path("/proc/loadavg").read_text().split()[0]
                    times = opened(browser, pages[name], place)
                    row = {"page": name, "at": place, "round": number}
                    rows.append(row | {"load_1min": float(load)} | times)
    return rows


def medians(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the medians over the rounds for each page and place."""
    found = []
    for page, at in dict.fromkeys((row["page"], row["at"]) for row in rows):
        mine = [row for row in rows if (row["page"], row["at"]) == (page, at)]
        one: dict[str, Any] = {"page": page, "at": at, "openings": len(mine)}
        for name in ("text", "curves", "viewer", "free", "longest task"):
            times = [row[name] for row in mine if row[name] is not None]
            one[name] = float(np.median(times)) if times else None
        found.append(one)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--run", type=Path, help="a log to report, instead of a new one"
    )
    parser.add_argument("--other", type=Path, help="page of another version")
    parser.add_argument("--keep", type=Path, help="where to leave the page")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log = given.run or write_run(Path(folder))
        began = time.perf_counter()
        page = uqcalc.write_report(log, Path(folder) / "report.html")
        written = time.perf_counter() - began
        size = page.stat().st_size / 1e6
        if given.keep:
            shutil.copy(page, given.keep)
        pages = {"now": page} | ({"other": given.other} if given.other else {})
        rows = measure({k: v.resolve() for k, v in pages.items()}, given.rounds)
    table = medians(rows)
    columns = (
        "page",
        "at",
        "openings",
        "text",
        "curves",
        "viewer",
        "free",
        "longest task",
    )
    print_table("seconds, medians", table, {name: name for name in columns})
    top, at = (row for row in table if row["page"] == "now")
    targets = [
        target("curves drawn, s", top["curves"], 3.0),
        target("main thread free, s", top["free"], 3.0),
        target("opened at the structures: viewer shows one, s", at["viewer"], 3.0),
        target("size of the page, MB", size, 15.0),
    ]
    print_targets(targets)
    write_result(
        "report",
        seeds=[0],
        rows=rows,
        targets=targets,
        notes=["Chromium without a window, WebGL in software; seconds"],
        more={"medians": table, "page_MB": size, "written_s": written},
    )


if __name__ == "__main__":
    main()
