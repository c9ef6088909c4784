"""`guard`: take UNRELIABLE systems out of a run of many; the others continue."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from ase import units
from torch_sim.integrators import INTEGRATOR_REGISTRY, Integrator

from uqcalc.records import Level
from uqcalc.torchsim.model import Judged, ReliableModel
from uqcalc.torchsim.systems import Left, Places, copied, numbers_of, put, settle, take
from uqcalc.torchsim.watching import STEP, Seen, SystemClock, Watcher, moves_cell
from uqcalc.watching.trigger import Trigger


class Guard(tuple[Callable[..., Any], Callable[..., Any]]):
    """A guarded integrator: the pair (init, step) that ``torch_sim.integrate`` takes.

    `guard` makes it.

    Attributes
    ----------
    left : dict
        Number of a system -> `Left`, for each system that was taken out.
    levels : dict
        Number of a system -> its `Level` at the last step that was judged.
    """

    __slots__ = ()

    @property
    def left(self) -> dict[int, Left]:
        """Number of a system -> `Left`, for each system that was taken out."""
        return dict(self._run.watcher.left)

    @property
    def levels(self) -> dict[int, Level | None]:
        """Number of a system -> its level at the last step that was judged."""
        return {n: watch.level for n, watch in self._run.watcher.watches.items()}

    @property
    def _run(self) -> _Run:
        run: _Run = self[1].__self__  # type: ignore[attr-defined]
        return run

    def __repr__(self) -> str:
        systems = len(self.levels)
        return f"<Guard of {systems} systems, {len(self.left)} left>"

    def summary(self) -> str:
        """Return the number of systems that left, and a line for each of them."""
        lines = [f"{len(self.left)} of {len(self.levels)} systems left the run."]
        for number, left in sorted(self.left.items()):
            lines.append(
                f"System {number}: kept at step {left.kept_step} "
                f"({left.kept_level.name}); {left.reason}"
            )
        return "\n".join(lines)

    def close(self) -> None:
        """Write the files to disk, and release them for other runs."""
        self._run.watcher.close()


def guard(
    integrator: Integrator | tuple[Callable[..., Any], Callable[..., Any]],
    *,
    trigger: Trigger | None = None,
    log: str | os.PathLike[str] | None = None,
    flagged: str | os.PathLike[str] | None = None,
    mode: Literal["append", "new"] = "new",
) -> Guard:
    """Return an integrator that takes UNRELIABLE systems out of the batch.

    Each system has its own trigger, as under `uqcalc.Monitor`, with the same checks of
    the run (`uqcalc.watching.runchecks`). Where the trigger acts, the system goes back
    to its last RELIABLE state and is not evaluated any more; the others continue. Its
    positions, momenta, cell, thermostat and barostat in the state that
    ``torch_sim.integrate`` returns are those of that state. A system that was never
    RELIABLE goes back to its last SUSPECT state, or to the first one.

    A system leaves at once, with any trigger, if its energy or forces are NaN or
    infinite, or if values are physically impossible.

    Parameters
    ----------
    integrator : torch_sim Integrator, or (init, step)
    trigger : Trigger, optional
        Each system gets a copy. By default `Trigger.usual`: half of the last 50 fs.
    log : path, optional
        Event log, readable with `uqcalc.read_log`: one line for each system and event.
        Events are "level" (the level of a system has changed) and "left".
    flagged : path, optional
        Extended XYZ file: for each system that leaves, the annotated frame at which the
        trigger acted, with ``info["system"]`` and ``info["step"]``.
    mode : {"new", "append"}
        "new" refuses existing files.

    Returns
    -------
    Guard
        For ``torch_sim.integrate(numbered(systems, model), model, integrator=...)``.
        Its model must be a `ReliableModel`; a guard serves for one run.

    Raises
    ------
    TypeError
        If ``integrator`` is neither, or when the run begins with another model.
    ValueError
        When the run begins with systems that have no numbers (`numbered`).
    RecordError
        If files exist (mode "new"), or another writer has them.

    Notes
    -----
    Tensors among the options of the integrator (temperatures, time steps, pressures)
    may have one entry for each system.
    """
    pair = INTEGRATOR_REGISTRY.get(integrator, integrator)
    is_pair = isinstance(pair, tuple) and len(pair) == 2 and all(map(callable, pair))
    if not is_pair:
        msg = (
            "integrator must be a torch_sim Integrator or a pair (init, step), got "
            f"{integrator!r}; write guard(ts.Integrator.nvt_langevin)"
        )
        raise TypeError(msg)
    run = _Run(pair, Watcher(trigger, log, flagged, mode, STEP))
    return Guard((run.init, run.step))


class _Run:
    """The state of a guarded run: which systems of the batch are still moved."""

    def __init__(
        self,
        pair: tuple[Callable[..., Any], Callable[..., Any]],
        watcher: Watcher,
    ) -> None:
        self._init, self._step = pair
        self.watcher = watcher
        self._steps = 0
        self._numbers: list[int] = []
        self._going: list[int] = []  # places in the batch of the systems that are moved
        self._whole: Any = None  # the state of the whole batch that was returned
        self._moved: Any = None  # the state of the systems that are moved
        self._places: Places | None = None  # of these, once others have left

    def init(self, state: Any, model: Any, **options: Any) -> Any:
        """Begin a run of a batch."""
        if not isinstance(model, ReliableModel):
            msg = (
                "model of a guarded run must be a ReliableModel, got "
                f"{type(model).__name__}; write ReliableModel(model, probe=...)"
            )
            raise TypeError(msg)
        self._numbers = numbers_of(state)
        if again := sorted({*self._numbers} & {*self.watcher.watches}):
            msg = (
                f"a guard must be used for one run, got systems {again[:5]} again; "
                "make a new guard"
            )
            raise ValueError(msg)
        whole = self._init(state=state, model=model, **options)
        settle(whole, model.system_keys)
        timestep = options.get("dt")
        fs = None
        if timestep is not None:
            fs = float(torch.as_tensor(timestep).max()) / units.fs
        about = {
            "dynamics": getattr(self._step, "__name__", type(self._step).__name__),
            "timestep_fs": fs,
        }
        self.watcher.open(model, about)
        cell = moves_cell(whole)
        for row, number in enumerate(self._numbers):
            self.watcher.begin(number, model, row, SystemClock(fs, cell))
        self._steps, self._places = 0, None
        self._going = list(range(len(self._numbers)))
        self._whole = self._moved = whole
        self._look(model.last)
        return self._whole

    def step(self, state: Any, model: Any, **options: Any) -> Any:
        """Make one step of the remaining systems, and return the whole batch."""
        self._steps += 1
        if not self._going:
            return state
        everything = len(self._going) == len(self._numbers)
        if state is not self._whole:  # changed by the caller between two steps
            self._whole = state
            self._moved = state if everything else take(state, self._going)
        given = {key: self._part(value) for key, value in options.items()}
        self._moved = self._step(state=self._moved, model=model, **given)
        settle(self._moved, model.system_keys)
        if self._places is None:
            self._whole = self._moved
        else:
            put(self._whole, self._moved, self._places)
        self._look(model.last)
        return self._whole

    def _look(self, judged: Judged | None) -> None:
        """Judge the remaining systems, and take out those whose trigger acts."""
        if judged is None:  # a pass that is not read
            return
        watcher, step = self.watcher, self._steps
        numbers = [self._numbers[place] for place in self._going]
        seen = [
            watcher.look(judged, row, number, step)
            for row, number in enumerate(numbers)
        ]
        watcher.keep(self._moved, numbers, [step] * len(numbers))
        if any(one.why for one in seen):
            self._take_out(judged, seen, numbers)

    def _take_out(self, judged: Judged, seen: list[Seen], numbers: list[int]) -> None:
        acted = [row for row, one in enumerate(seen) if one.why]
        self._whole = copied(self._whole)  # states that were returned stay as they are
        places = self._going
        for row in acted:
            kept = self.watcher.leave(judged, row, numbers[row], self._steps, seen[row])
            put(self._whole, kept, Places.of(self._whole, [places[row]]))
        self._going = [p for row, p in enumerate(places) if row not in set(acted)]
        self._moved = None
        if self._going:
            self._moved = take(self._whole, self._going)
            self._places = Places.of(self._whole, self._going)

    def _part(self, value: Any) -> Any:
        """Return the entries of an option that belong to the remaining systems."""
        everything = len(self._going) == len(self._numbers)
        if everything or not isinstance(value, torch.Tensor):
            return value
        if value.ndim in (1, 3) and len(value) == len(self._numbers):
            return value[self._going]
        return value
