"""A model of metatomic with random weights and heads of all kinds."""

# no postponed annotations: TorchScript reads those of the toy model

from typing import Dict, List, Optional  # noqa: UP035

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
)
from metatomic_ase import MetatomicCalculator


CUTOFF = 4.0


class Toy(torch.nn.Module):
    """Gaussians of distances, summed over neighbours, into heads of all kinds.

    Features are in reversed order of the atoms: only their labels give the order.
    """

    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.hidden = torch.nn.Linear(4, 5).double()
            self.last = torch.nn.Linear(5, 1).double()
            self.ensemble = torch.nn.Linear(5, 4, bias=False).double()
            self.force_head = torch.nn.Linear(4, 1).double()
        self.direct = False

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:  # noqa: UP006
        return [NeighborListOptions(cutoff=4.0, full_list=True, strict=True)]

    def heads(self, system: System) -> List[torch.Tensor]:  # noqa: UP006
        """Return features, energy, uncertainties, ensemble, direct forces and stress.

        The uncertainty of an atom is a hundredth of the norm of its features: metatomic
        warns above 0.1 eV.
        """
        pairs = system.get_neighbor_list(self.requested_neighbor_lists()[0])
        arrows = pairs.values.squeeze(-1)
        lengths = (arrows**2).sum(-1).sqrt()
        first = pairs.samples.column("first_atom").to(torch.long)
        second = pairs.samples.column("second_atom").to(torch.long)
        centres = torch.linspace(0.5, 3.0, 4, dtype=arrows.dtype)
        fades = 0.5 * (1 + torch.cos(torch.pi * (lengths / 4.0).clamp(max=1.0)))
        seen = torch.exp(-((lengths.unsqueeze(-1) - centres) ** 2))
        weight = fades * system.types[second].to(arrows.dtype) / 8.0
        seen = seen * weight.unsqueeze(-1)
        summed = torch.zeros(len(system), 4, dtype=arrows.dtype)
        own = torch.tanh(self.hidden(summed.index_add(0, first, seen)))
        answers = [own, self.last(own).sum().reshape(1, 1)]
        answers.append((own**2).sum(-1, keepdim=True).sqrt() / 100)
        answers.append(self.ensemble(own).sum(0, keepdim=True))
        if self.direct:
            pushes = self.force_head(seen) * arrows
            force = torch.zeros(len(system), 3, dtype=arrows.dtype)
            answers.append(force.index_add(0, first, pushes).unsqueeze(-1))
            answers.append((arrows.T @ pushes).reshape(1, 3, 3, 1))
        return answers

    def place(self, name: str) -> int:
        """Return the index in `heads` of an output."""
        place = 0
        if name.endswith("uncertainty"):
            place = 2
        elif name.endswith("ensemble"):
            place = 3
        elif name.startswith("energy"):
            place = 1
        elif name.startswith("non_conservative_force"):
            place = 4
        elif name.startswith("non_conservative_stress"):
            place = 5
        return place

    def forward(
        self,
        systems: List[System],  # noqa: UP006
        outputs: Dict[str, ModelOutput],  # noqa: UP006
        selected_atoms: Optional[Labels] = None,  # noqa: UP045
    ) -> Dict[str, TensorMap]:  # noqa: UP006
        self.direct = False
        for name in outputs:
            self.direct = self.direct or name.startswith("non_conservative")
        answers = [self.heads(system) for system in systems]
        labels: List[List[int]] = []  # noqa: UP006
        for index, system in enumerate(systems):
            for atom in range(len(system)):
                labels.append([index, atom])
        rows = torch.tensor(labels, dtype=torch.int32)
        numbers = torch.arange(len(systems), dtype=torch.int32).reshape(-1, 1)
        xyz = torch.arange(3).reshape(-1, 1)
        results: Dict[str, TensorMap] = {}  # noqa: UP006
        for name in outputs:
            which = self.place(name)
            samples = Labels(["system"], numbers)
            if which in (0, 2, 4):
                samples = Labels(
                    ["system", "atom"], rows.flip(0) if which == 0 else rows
                )
            components = [Labels(["xyz"], xyz)]
            if which == 5:
                components = [Labels(["xyz_1"], xyz), Labels(["xyz_2"], xyz)]
            elif which < 4:
                components = components[:0]
            values = torch.cat([answer[which] for answer in answers])
            if which == 0:
                values = values.flip(0)
            width = torch.arange(values.shape[-1]).reshape(-1, 1)
            block = TensorBlock(values, samples, components, Labels(["p"], width))
            results[name] = TensorMap(Labels(["_"], torch.tensor([[0]])), [block])
        return results


ENERGY = {"energy": ModelOutput(unit="eV", sample_kind="system")}
FEATURE = {"feature": ModelOutput(unit="", sample_kind="atom")}
FORCE = {"non_conservative_force": ModelOutput(unit="eV/A", sample_kind="atom")}
STRESS = {"non_conservative_stress": ModelOutput(unit="eV/A^3", sample_kind="system")}
UNCERTAINTY = {"energy_uncertainty": ModelOutput(unit="eV", sample_kind="atom")}
ENSEMBLE = {"energy_ensemble": ModelOutput(unit="eV", sample_kind="system")}
EVERYTHING = ENERGY | FEATURE | FORCE | STRESS | UNCERTAINTY | ENSEMBLE


def model(outputs=EVERYTHING, *, seed=0, kind=Toy):
    capabilities = ModelCapabilities(
        outputs=outputs,
        atomic_types=[1, 6, 8, 11, 17],
        interaction_range=CUTOFF,
        length_unit="angstrom",
        supported_devices=["cpu"],
        dtype="float64",
    )
    return AtomisticModel(kind(seed).eval(), ModelMetadata(), capabilities)


def metatomic(outputs=EVERYTHING, *, seed=0, **options):
    # without a skin: otherwise the order of sums depends on the last geometry
    return MetatomicCalculator(model(outputs, seed=seed), neighbor_skin=0.0, **options)


class Charged(Toy):
    """Says that it reads charge, spin and momenta."""

    def requested_inputs(self) -> Dict[str, ModelOutput]:  # noqa: UP006
        return {
            "charge": ModelOutput(unit="e", sample_kind="system"),
            "spin_multiplicity": ModelOutput(sample_kind="system"),
            "momentum": ModelOutput(sample_kind="atom"),
        }
