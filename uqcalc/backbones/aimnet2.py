"""AIMNet2: the learned vector of each atom, read from the untrimmed output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, final

import numpy as np
import torch
from ase import Atoms
from packaging.version import Version

from uqcalc.backbones.base import Capture, Prediction, one_at_a_time
from uqcalc.backbones.fingerprint import fingerprint
from uqcalc.backbones.lazy import LazyBackbone
from uqcalc.backbones.passmemory import Costs
from uqcalc.backbones.prediction import geometry
from uqcalc.errors import BackboneError


_SOUND = Version("0.2.6")  # first release in which all neighbour lists are right


@final
class AIMNet2Backbone(LazyBackbone):
    """An ``AIMNet2ASE``; features of shape (atoms, 256), and charges.

    Charge and multiplicity come from ``atoms.info`` as for the bare calculator, with
    one difference: they are not kept for the next structure. If its ``info`` has none,
    the calculator's own charge and multiplicity are used.
    """

    name = "aimnet2"
    by_autograd = True

    def __init__(self, calculator: Any, model_calculator: Any | None = None) -> None:
        owner = calculator if model_calculator is None else model_calculator
        base = owner.base_calc
        if getattr(base, "_cuda_graph", None) is not None:
            msg = (
                "AIMNet2Calculator must have cuda_graph=False to be tapped, got "
                "True, which replays a CUDA graph without the tap; build the "
                "calculator with cuda_graph=False"
            )
            raise BackboneError(msg)
        super().__init__(
            calculator,
            owner,
            feature_dim=_width(base.model),
            fingerprint=_fingerprint(base),
            elements=_elements(owner),
        )
        self.provides |= {"charges"}
        self.cutoff = float(base.cutoff)
        self.reads = frozenset({"charge", *(("mult", "spin") if base.is_nse else ())})
        self.costs = Costs()

    @property
    def has_dispersion(self) -> bool:
        """Whether the energy includes dispersion, inside or outside the network."""
        base = self.model_calculator.base_calc
        inside = {f"outputs.{name}" for name in ("d3bj", "dftd3", "d3ts")}
        modules = {name for name, _ in base.model.named_modules()}
        return base.external_dftd3 is not None or bool(modules & inside)

    @property
    def atomic_shifts(self) -> dict[int, float]:
        """Energy that the model adds for each atom: atomic number -> eV; may be empty.

        In released models: the atomic energies of the reference method plus a trained
        shift.
        """
        state = self.model_calculator.base_calc.model.state_dict()
        rows = [v for k, v in state.items() if k.endswith("atomic_shift.shifts.weight")]
        if not rows:
            return {}
        energies = rows[0].detach().cpu().double().reshape(-1).tolist()
        known = self.elements or range(1, len(energies))
        return {
            z: energies[z]
            for z in sorted(known)
            if 0 < z < len(energies) and math.isfinite(energies[z])
        }

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Read the output of a pass just before it is trimmed for the user.

        Hooks do not work here: scripted models refuse them, and any hook disables the
        model's fast path on a GPU.
        """
        captured = Capture([], [])
        owner = self.model_calculator
        base, charge, mult = owner.base_calc, owner.charge, owner.mult
        others = vars(base).get("process_output")
        process_output = base.process_output

        room = _room_for_neighbours(base)

        def listen(data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            _check_neighbours(data, room)
            captured.features.append(_rows(data, "aim"))
            captured.charges.append(_rows(data, "charges"))
            trimmed: dict[str, torch.Tensor] = process_output(data)
            return trimmed

        base.process_output = listen
        try:
            yield captured
        finally:
            del base.process_output
            if others is not None:
                base.process_output = others
            if owner.charge != charge:
                owner.set_charge(charge)
            if owner.mult != mult:
                owner.set_mult(mult)

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:
        """Return the charge and, if the model reads it, the multiplicity."""
        charge, mult = _charge_and_mult(self.model_calculator, atoms)
        nse = self.model_calculator.base_calc.is_nse
        return {"charge": charge, "mult": mult} if nse else {"charge": charge}

    @one_at_a_time
    def predict_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> list[Prediction]:
        """Evaluate molecules in one native batch; periodic frames one by one."""
        owner = self.model_calculator
        periodic = any(frame.pbc.any() for frame in frames)
        if periodic or not self.may_batch(frames, wanted):
            return super().predict_many(frames, wanted)
        with self.armed() as captured:
            output = owner.base_calc(
                _ragged(owner, frames),
                forces=True,
                validate_species=owner.validate_species,
            )
        self.passes += len(captured.features)
        sizes = [len(frame) for frame in frames]
        features = self.feature_rows(captured, sum(sizes)).split(sizes)
        charges = captured.charges[0].split(sizes)
        energies = output["energy"].detach().cpu().tolist()
        forces = output["forces"].detach().cpu().split(sizes)
        return [
            _prediction(*parts)
            for parts in zip(frames, energies, forces, features, charges, strict=True)
        ]


def _room_for_neighbours(base: Any) -> int | None:
    """Enlarge the neighbour buffer if this aimnet release drops neighbours.

    aimnet before 0.2.6 shrinks its buffer after a small structure. With
    nvalchemi-toolkit-ops 0.3 it then drops neighbours of a larger one: the energy of
    NaCl evaluated after water was wrong by 0.8 meV, the forces by a factor of three.
    Return the size of the buffer: that of a new calculator, or the present one if
    larger. Return None for later releases.
    """
    if Version(version("aimnet")) >= _SOUND:
        return None
    cutoff = float(base._nblist.cutoff)
    fresh = type(base._nblist)(cutoff).max_neighbors
    base._nblist.max_neighbors = max(base._nblist.max_neighbors, fresh)
    return int(base._nblist.max_neighbors)


def _check_neighbours(data: dict[str, torch.Tensor], room: int | None) -> None:
    """Raise an error if the neighbour buffer was full: neighbours may be missing."""
    if room is not None and data["nbmat"].shape[-1] >= room:
        msg = (
            f"each atom must have fewer than {room} neighbours with aimnet "
            f"{version('aimnet')}, which ignores all further neighbours, got {room} "
            f"or more; install aimnet {_SOUND} or later"
        )
        raise BackboneError(msg)


def _rows(data: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    """Return one row for each atom from the raw output of a pass."""
    rows = data[key].detach()
    if data["coord"].ndim == 2:
        return rows[: len(data["nbmat"]) - 1]  # the last one is padding
    return rows.squeeze(0)  # small molecules on a GPU: (1, atoms, ...), unpadded


def _charge_and_mult(owner: Any, atoms: Atoms) -> tuple[Any, Any]:
    """Return the charge and multiplicity that ``AIMNet2ASE`` uses for ``atoms``."""
    charge = atoms.info.get("charge")
    mult = atoms.info.get("mult", atoms.info.get("spin"))
    return (
        owner.charge if charge is None else charge,
        owner.mult if mult is None or not owner.base_calc.is_nse else mult,
    )


def _ragged(owner: Any, frames: Sequence[Atoms]) -> dict[str, torch.Tensor]:
    """Return many molecules as one input; ``mol_idx`` numbers the molecules."""
    device = owner.base_calc.device
    charges, mults = zip(*(_charge_and_mult(owner, f) for f in frames), strict=True)
    index = np.repeat(np.arange(len(frames)), [len(frame) for frame in frames])
    positions = np.concatenate([frame.positions for frame in frames])
    return {
        "coord": torch.tensor(positions, dtype=torch.float32, device=device),
        "numbers": torch.tensor(
            np.concatenate([frame.numbers for frame in frames]), device=device
        ),
        "charge": torch.tensor(charges, dtype=torch.float32, device=device),
        "mult": torch.tensor(mults, dtype=torch.float32, device=device),
        "mol_idx": torch.tensor(index, device=device),
    }


def _prediction(
    frame: Atoms,
    energy: float,
    force: torch.Tensor,
    features: torch.Tensor,
    charges: torch.Tensor,
) -> Prediction:
    forces = force.numpy()
    return Prediction(
        **geometry(frame),
        results={"energy": energy, "forces": forces, "charges": charges.cpu().numpy()},
        energy=energy,
        forces=forces,
        conservative_forces=forces,
        features=features,
        charges=charges,
    )


def _width(model: torch.nn.Module) -> int:
    """Return the width of ``aim``, the output of the last message-passing layer."""
    # found by name: scripted models offer no other way
    biases = [
        value
        for name, value in model.named_parameters()
        if name.startswith("mlps.") and name.endswith(".bias")
    ]
    if not biases:
        msg = (
            "model must be an AIMNet2 network to give an 'aim' vector for each atom, "
            f"got {type(model).__name__}; use a released AIMNet2 model"
        )
        raise BackboneError(msg)
    return len(biases[-1])


def _elements(owner: Any) -> frozenset[int] | None:
    if owner.implemented_species is None or not owner.validate_species:
        return None
    return frozenset(int(z) for z in owner.implemented_species)


def _fingerprint(base: Any) -> str:
    """Hash the network and the terms added to its energy outside of it.

    The method and range of the long-range Coulomb sum are left out: they are settings
    of a run, and a periodic structure changes them.
    """
    dispersion = base.external_dftd3
    constants: list[object] = [
        round(float(base.cutoff), 6),
        base.external_coulomb is not None,
    ]
    if dispersion is not None:
        terms = (dispersion.s6, dispersion.s8, dispersion.a1, dispersion.a2)
        constants.extend(round(float(term), 6) for term in terms)
    values = base.model.state_dict().values()
    floats = [value for value in values if value.is_floating_point()]
    return fingerprint("aimnet2", floats, constants)
