"""The live view of runs in a browser, served on this machine only.

The page asks for the state every second. Nothing of a run is written, and no path comes
from the browser: runs have numbers.
"""

from __future__ import annotations

import math
import threading
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uqcalc.annotating.copies import step_of
from uqcalc.errors import MissingExtraError
from uqcalc.files.writing import strict_json
from uqcalc.plotting.viewer import page_script, viewer_script
from uqcalc.records import Level
from uqcalc.viewing.curves import plotly_script, timeline_figure
from uqcalc.viewing.following import Follower, Watched
from uqcalc.viewing.page import page_and_own_style, script_text
from uqcalc.viewing.structures import Shown, dataset


if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST, PORT = "127.0.0.1", 8741
_SCRIPT = "text/javascript"


class Live:
    """The state of all runs, for one request at a time."""

    def __init__(self, place: Path) -> None:
        self._watched = Watched(place)
        self._lock = threading.Lock()

    def state(self) -> dict[str, Any]:
        """Return a summary of each run, after reading its log."""
        with self._lock:
            runs = self._watched.poll()
            return {
                "place": str(self._watched.place),
                "runs": [self._summary(number, run) for number, run in enumerate(runs)],
            }

    def _summary(self, number: int, run: Follower) -> dict[str, Any]:
        last = run.last or {}
        time_fs = last.get("time_fs")
        return {
            "number": number,
            "name": run.path.stem,
            "status": run.status,
            "level": None if run.level is None else run.level.name,
            "step": last.get("step"),
            "time_ps": None if time_fs is None else time_fs / 1000,
            "rate": run.rate,
            "left_s": run.left_s,
            "why": run.why,
            "notes": run.notes,
            "version": run.version,
            "structure": self._structure_version(run),
        }

    def _structure_version(self, run: Follower) -> float:
        """Return when a file with structures of a run was last written."""
        from uqcalc.viewing.sources import beside

        times = [0.0]
        for path in beside(run.path):
            try:
                times.append(path.stat().st_mtime)
            except OSError:  # removed just now
                continue
        return max(times)

    def timeline(self, number: int) -> str | None:
        """Return the timeline of a run as JSON; None without steps."""
        with self._lock:
            run = self._numbered(number)
            if run is None or run.last is None:
                return None
            return str(timeline_figure(run.track).to_json())

    def structure(self, number: int) -> dict[str, Any] | None:
        """Return the present structure of a run for the viewer; None without one."""
        with self._lock:
            run = self._numbered(number)
            found = None if run is None else run.structure()
            if run is None or found is None:
                return None
            atoms, path = found
            step = step_of(atoms) or 0
            level = Level(int(atoms.info.get("reliability_level", Level.UNRELIABLE)))
            p = float(atoms.info.get("probe_reliability", math.nan))
            place = (float(step), 0.0)
            one = Shown(atoms, run.path.stem, step, place[0], level, p, place)
            data = dataset([one], ("step", "place"), "step")
            found_at = {"step": atoms.info.get("step"), "file": path.name}
            told: dict[str, Any] = strict_json({"dataset": data} | found_at)
            return told

    def _numbered(self, number: int) -> Follower | None:
        paths = sorted(self._watched.runs)
        return self._watched.runs[paths[number]] if 0 <= number < len(paths) else None


def application(place: Path) -> Starlette:
    """Return the web application for a folder or a log.

    Raises
    ------
    MissingExtraError
        Without starlette, which the extra ``report`` installs.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.responses import HTMLResponse, JSONResponse, Response
        from starlette.routing import Route
    except ImportError as error:
        raise MissingExtraError("watch --web", "starlette", "report") from error
    live = Live(place)
    page = _page(place)
    texts = {
        "plotly.js": plotly_script(),
        "chemiscope.js": viewer_script(),
        "report.js": page_script() + script_text("report.js"),
        "live.js": script_text("live.js"),
    }

    def home(_: Request) -> Response:
        return HTMLResponse(page)

    def asset(request: Request) -> Response:
        text = texts.get(request.path_params["name"])
        if text is None:
            return Response(status_code=404)
        return Response(text, media_type=_SCRIPT)

    def state(_: Request) -> Response:
        return JSONResponse(live.state())

    def timeline(request: Request) -> Response:
        found = live.timeline(request.path_params["number"])
        return Response(found or "null", media_type="application/json")

    def structure(request: Request) -> Response:
        return JSONResponse(live.structure(request.path_params["number"]))

    return Starlette(
        routes=[
            Route("/", home),
            Route("/asset/{name}", asset),
            Route("/state", state),
            Route("/timeline/{number:int}", timeline),
            Route("/structure/{number:int}", structure),
        ],
        # a page of another site must not reach this server under another name
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
        ],
    )


def _page(place: Path) -> str:
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = files("uqcalc.viewing") / "live.html.jinja"
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        place=place.name or str(place),
        style=Markup(page_and_own_style()),
        version=version("uqcalc"),
    )


def serve(place: Path, port: int = PORT) -> None:
    """Serve the live page on 127.0.0.1 until Ctrl-C.

    Raises
    ------
    MissingExtraError
        Without starlette and uvicorn, which the extra ``report`` installs.
    OSError
        If the port is in use.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError("watch --web", "uvicorn", "report") from error
    uvicorn.run(application(place), host=HOST, port=port, log_level="warning")
