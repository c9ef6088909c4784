"""MatterSim: features are the input of the readout of atomic energies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import numpy as np
import torch
from ase import Atoms, units
from ase.stress import full_3x3_to_voigt_6_stress

from uqcalc.backbones.base import Backbone, Capture, Prediction, one_at_a_time
from uqcalc.backbones.fingerprint import fingerprint
from uqcalc.backbones.hooks import listen_to_input
from uqcalc.backbones.passmemory import Costs
from uqcalc.backbones.prediction import geometry
from uqcalc.errors import BackboneError


@final
class MatterSimBackbone(Backbone):
    """A ``MatterSimCalculator`` (M3GNet); features (atoms, units), 128 in the 1M model.

    MatterSim puts a molecule into a large periodic box, and says so in a warning at
    each pass. Structures that are periodic in one or two directions must lie inside
    the cell in the other directions: MatterSim would move an atom outside of it to the
    other side.
    """

    name = "mattersim"
    by_autograd = True
    batches_stress = True

    def __init__(self, calculator: Any, model_calculator: Any | None = None) -> None:
        owner = calculator if model_calculator is None else model_calculator
        model = owner.potential.model
        self._settings = getattr(model, "model_args", None) or {}
        if not {"units", "cutoff", "threebody_cutoff", "max_z"} <= {*self._settings}:
            msg = (
                "MatterSim potential must be an M3GNet of MatterSim 1, got "
                f"{type(model).__name__} with {sorted(self._settings)}; load a "
                "released model"
            )
            raise BackboneError(msg)
        super().__init__(
            calculator,
            owner,
            feature_dim=int(self._settings["units"]),
            fingerprint=_fingerprint(model, self._settings),
            elements=frozenset(range(1, int(self._settings["max_z"]) + 1)),
        )
        self.cutoff = float(self._settings["cutoff"])
        self.reads = frozenset()
        angles = float(self._settings["threebody_cutoff"])
        self.costs = Costs(triple=5e3, angles=angles)
        in_ase_unit = np.isclose(float(owner.stress_weight), units.GPa)
        if not (owner.compute_stress and in_ase_unit):
            self.provides -= {"stress"}

    @property
    def network(self) -> torch.nn.Module:
        """The model."""
        model: torch.nn.Module = self.model_calculator.potential.model
        return model

    def armed(self) -> AbstractContextManager[Capture]:
        """Listen to the input of the readout in one call.

        MatterSim calls ``forward`` of the model itself, so that hooks on it do not run.
        """
        return listen_to_input(self.model_calculator.potential.model.final)

    def check_structure(self, atoms: Atoms) -> None:
        """Refuse atoms outside the cell in an open direction of a film or wire, too."""
        super().check_structure(atoms)
        if not atoms.pbc.any() or atoms.pbc.all():
            return
        places = atoms.cell.scaled_positions(atoms.positions)[:, ~atoms.pbc]
        if np.any((places < 0) | (places >= 1)):
            msg = (
                "atoms must be inside the cell in its open directions for MatterSim, "
                f"which moves them into it, got fractions from {places.min():.3g} to "
                f"{places.max():.3g}; call atoms.center(vacuum=10, axis=...) first"
            )
            raise BackboneError(msg)

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:  # noqa: ARG002
        """Return an empty dict: MatterSim reads only the geometry."""
        return {}

    @one_at_a_time
    def predict_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> list[Prediction]:
        """Evaluate all frames in one native batch."""
        owner = self.model_calculator
        if not self.may_batch(frames, wanted):
            return super().predict_many(frames, wanted)
        with self.armed() as captured:
            output = _batched_output(owner, frames)
        self.passes += len(captured.features)
        sizes = [len(frame) for frame in frames]
        features = self.feature_rows(captured, sum(sizes)).split(sizes)
        kept = {name: value.detach().cpu() for name, value in output.items()}
        forces = kept["forces"].split(sizes)
        stresses = kept["stresses"].numpy() if owner.compute_stress else None
        predictions = []
        for index, frame in enumerate(frames):
            own = forces[index].numpy()
            energy = float(kept["total_energy"][index])
            results: dict[str, Any] = {"energy": energy, "forces": own}
            if stresses is not None:
                stress = full_3x3_to_voigt_6_stress(stresses[index])
                results["stress"] = owner.stress_weight * stress
            predictions.append(
                Prediction(
                    **geometry(frame),
                    results=results,
                    energy=energy,
                    forces=own,
                    conservative_forces=own,
                    features=features[index],
                )
            )
        return predictions


def _batched_output(owner: Any, frames: Sequence[Atoms]) -> dict[str, torch.Tensor]:
    from mattersim.datasets.utils.build import build_dataloader
    from mattersim.forcefield.potential import batch_to_dict

    settings = owner.potential.model.model_args
    [batch] = build_dataloader(
        list(frames),
        cutoff=settings["cutoff"],
        threebody_cutoff=settings["threebody_cutoff"],
        batch_size=len(frames),
        only_inference=True,
    )
    output: dict[str, torch.Tensor] = owner.potential.forward(
        batch_to_dict(batch, device=owner.device),
        include_forces=True,
        include_stresses=owner.compute_stress,
    )
    return output


def _fingerprint(model: Any, settings: dict[str, Any]) -> str:
    """Hash the weights, and the scale and shift of the atomic energies."""
    names = ("cutoff", "threebody_cutoff", "max_n", "max_l")
    constants = [round(float(settings[name]), 6) for name in names]
    values = [*model.parameters(), *model.normalizer.buffers()]
    floats = [value for value in values if value.is_floating_point()]
    return fingerprint("mattersim", floats, constants)
