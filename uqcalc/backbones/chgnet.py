"""CHGNet: the input of its last multilayer perceptron, one row per atom."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from ase import Atoms

from uqcalc.backbones.base import Backbone, Capture, Prediction, one_at_a_time
from uqcalc.backbones.batching import batches, once_each
from uqcalc.backbones.differentiable import Trainable
from uqcalc.backbones.fingerprint import fingerprint
from uqcalc.backbones.hooks import listen_to_input
from uqcalc.backbones.passmemory import Costs
from uqcalc.backbones.prediction import NO_FORCES, geometry
from uqcalc.errors import BackboneError


@final
class CHGNetBackbone(Backbone):
    """A ``CHGNetCalculator``; features of shape (atoms, 64) after the last norm.

    CHGNet treats every structure as periodic, for any ``atoms.pbc``.
    """

    name = "chgnet"
    by_autograd = True
    batches_stress = True
    most_batch_atoms = 64  # 512 atoms in dense cells, with their angles, need 13 GB
    perturbable = ("atom_conv_layers.*.mlp_out.layers.1",)
    always_periodic = True
    changes_process = True  # it filters a warning for a while

    def __init__(self, calculator: Any, model_calculator: Any | None = None) -> None:
        owner = calculator if model_calculator is None else model_calculator
        model = owner.model
        if not model.mlp_first:
            msg = (
                "CHGNet must have mlp_first=True to have one feature row for each "
                "atom, got False; use a released CHGNet model"
            )
            raise BackboneError(msg)
        first = next(m for m in model.mlp.modules() if isinstance(m, torch.nn.Linear))
        super().__init__(
            calculator,
            owner,
            feature_dim=first.in_features,
            fingerprint=fingerprint("chgnet", model.parameters()),
            elements=frozenset(range(1, 95)),
        )
        self.cutoff = float(model.graph_converter.atom_graph_cutoff)
        self.reads = frozenset()
        angles = float(model.graph_converter.bond_graph_cutoff)
        self.costs = Costs(triple=1.2e5, angles=angles)

    @property
    def network(self) -> torch.nn.Module:
        """The model."""
        model: torch.nn.Module = self.model_calculator.model
        return model

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Listen to the input of the readout during one call."""
        with (
            listen_to_input(self.model_calculator.model.mlp) as captured,
            warnings.catch_warnings(),
        ):
            # CHGNet converts volumes with a graph to numbers in every evaluation
            warnings.filterwarnings("ignore", message="Converting a tensor with req")
            yield captured

    def check_structure(self, atoms: Atoms) -> None:
        """Refuse structures without a cell and left-handed cells, too."""
        super().check_structure(atoms)
        volume = float(np.linalg.det(atoms.cell.array))
        if abs(volume) < 1e-6:
            msg = (
                "structure must have a cell for CHGNet, got "
                f"{atoms.cell.array.tolist()}; give the crystal's cell, or choose "
                "another model for molecules"
            )
            raise BackboneError(msg)
        if volume < 0:  # CHGNet divides the virial by it
            msg = (
                "cell must be right-handed for CHGNet, which gives the stress of a "
                "left-handed cell with the wrong sign, got cell vectors with the "
                f"determinant {volume:.4g} Å³; exchange two of them, which leaves the "
                "crystal as it is: atoms.set_cell(atoms.cell[[1, 0, 2]]) and "
                "atoms.pbc = atoms.pbc[[1, 0, 2]]"
            )
            raise BackboneError(msg)

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:  # noqa: ARG002
        """Return an empty dict: CHGNet reads only the geometry."""
        return {}

    @one_at_a_time
    def predict_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> list[Prediction]:
        """Evaluate all frames, in native batches of at most 64 atoms."""
        forces = "forces" in wanted or not self.skips_forces
        if forces and not self.may_batch(frames, wanted):
            return super().predict_many(frames, wanted)
        if len(frames) > 1 and sum(map(len, frames)) > self.most_batch_atoms:
            parts = batches(frames, len, self.most_batch_atoms)
            return [p for part in parts for p in self.predict_many(part, wanted)]
        model, graphs = self.model_calculator.model, self._graphs(frames)
        with self.armed() as captured:
            task = ("efs" if "stress" in wanted else "ef") if forces else "e"
            outputs = model.predict_graph(graphs, task=task, batch_size=len(frames))
        self.passes += len(captured.features)
        sizes = [len(frame) for frame in frames]
        features = self.feature_rows(captured, sum(sizes)).split(sizes)
        return [
            _prediction(frame, self._results(frame, output), rows)
            for frame, output, rows in zip(frames, outputs, features, strict=True)
        ]

    @property
    def skips_forces(self) -> bool:
        """Not for sums."""
        return self.calculator is self.model_calculator

    @one_at_a_time
    def trainable(
        self, frames: Sequence[Atoms], *, copies: int = 1, stress: bool = False
    ) -> Trainable:
        """Evaluate copies of ``frames`` in one batch and keep the graph."""
        owner = self.model_calculator
        model = owner.model
        device = next(model.parameters()).device
        graphs = [graph.to(device) for graph in self._graphs(frames)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Converting a tensor with req")
            output = model.forward(graphs * copies, task="efs" if stress else "ef")
        energies = output["e"].view(copies, -1)
        if model.is_intensive:
            sizes = [len(frame) for frame in frames]
            energies = energies * torch.tensor(sizes, device=device)
        stresses = None
        if stress:  # GPa; the weight of the calculator converts it
            stresses = torch.stack([*output["s"]]) * owner.stress_weight
            stresses = stresses.view(copies, -1, 3, 3)
        forces = torch.cat(output["f"]).view(copies, -1, 3)
        return Trainable(energies=energies, forces=forces, stresses=stresses)

    def _graphs(self, frames: Sequence[Atoms]) -> list[Any]:
        from pymatgen.io.ase import AseAtomsAdaptor

        convert = self.model_calculator.model.graph_converter
        structure = AseAtomsAdaptor.get_structure
        return once_each(frames, lambda frame: convert(structure(frame)))

    def _results(self, frame: Atoms, output: dict[str, Any]) -> dict[str, Any]:
        """Return the results as the calculator gives them, in the units of ASE."""
        owner = self.model_calculator
        atoms = len(frame) if owner.model.is_intensive else 1
        results: dict[str, Any] = {
            "energy": float(output["e"]) * atoms,
        }
        if "f" in output:
            results["forces"] = np.asarray(output["f"])
        if "s" in output:  # GPa; the weight of the calculator converts it
            results["stress"] = np.asarray(output["s"]) * owner.stress_weight
        return results


def _prediction(
    frame: Atoms, results: dict[str, Any], features: torch.Tensor
) -> Prediction:
    forces = results.get("forces")
    return Prediction(
        **geometry(frame),
        results=results,
        energy=results["energy"],
        forces=NO_FORCES if forces is None else forces,
        conservative_forces=forces,
        features=features,
    )
