"""Several frames in one MACE batch, and apart again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms

from uqcalc.backbones.prediction import Prediction, geometry


def model_inputs(owner: Any, frames: Sequence[Atoms]) -> dict[str, torch.Tensor]:
    """Return what a model takes for several frames in one batch."""
    from mace import data
    from mace.tools import torch_geometric, torch_tools

    keys = data.KeySpecification(
        info_keys=owner.info_keys,
        arrays_keys=owner.arrays_keys | {owner.charges_key: "charges"},
    )
    with torch_tools.default_dtype(owner.default_dtype):
        graphs = [
            data.AtomicData.from_config(
                data.config_from_atoms(
                    frame, key_specification=keys, head_name=owner.head
                ),
                z_table=owner.z_table,
                cutoff=owner.r_max,
                heads=owner.available_heads,
            )
            for frame in frames
        ]
    batch = torch_geometric.Batch.from_data_list(graphs).to(owner.device)
    inputs: dict[str, torch.Tensor] = batch.to_dict()
    return inputs


def split_predictions(
    frames: Sequence[Atoms],
    energies: np.ndarray,
    members: np.ndarray,
    rows_of: tuple[torch.Tensor, torch.Tensor | np.ndarray | None],
) -> list[Prediction]:
    """Cut a batch into one `Prediction` per frame.

    ``energies`` are (members, frames), the forces ``members`` (members, atoms, 3),
    ``rows_of`` features and, where wanted, vectors.
    """
    several = len(members) > 1
    energy = energies.mean(0)
    features, vectors = rows_of
    sizes = [len(frame) for frame in frames]
    starts = np.cumsum([0, *sizes[:-1]])
    predictions = []
    for index, (frame, start, size) in enumerate(
        zip(frames, starts, sizes, strict=True)
    ):
        rows = slice(int(start), int(start) + size)
        forces = members[:, rows].mean(0)
        predictions.append(
            Prediction(
                **geometry(frame),
                results={"energy": float(energy[index]), "forces": forces},
                energy=float(energy[index]),
                forces=forces,
                conservative_forces=forces,
                features=features[rows],
                committee_forces=members[:, rows] if several else None,
                committee_energies=energies[:, index] if several else None,
                vectors=None if vectors is None else torch.as_tensor(vectors)[rows],
            )
        )
    return predictions
