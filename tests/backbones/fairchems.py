"""Small UMA and eSEN models of fairchem with random weights, through their files."""

from __future__ import annotations

import logging
import random
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.nn.modules.module import register_module_forward_pre_hook


TASKS = ("omat", "omol")
CLASSES = "fairchem.core.models.uma.escn_md"
EXPERTS = "fairchem.core.models.uma.escn_moe"
UNITS = "fairchem.core.units.mlip_unit.mlip_unit"
# as in the released models, but smaller
BACKBONE = {
    "max_num_elements": 100,
    "sphere_channels": 8,
    "hidden_channels": 8,
    "edge_channels": 8,
    "num_distance_basis": 16,
    "lmax": 2,
    "mmax": 2,
    "num_layers": 2,
    "cutoff": 5.0,
    "max_neighbors": 300,
    "otf_graph": True,
    "dataset_mapping": {task: task for task in TASKS},
}
UMA = {
    "model": f"{EXPERTS}.eSCNMDMoeBackbone",
    "num_experts": 3,
    "moe_type": "so2",
    "use_composition_embedding": True,
    "direct_forces": False,
    "regress_forces": True,
    "regress_stress": True,
    "ff_type": "grid",
}
ESEN = {
    "model": f"{CLASSES}.eSCNMDBackbone",
    "direct_forces": True,
    "regress_forces": True,
    "direct_stress": True,
    "ff_type": "spectral",
}
HEADS = {
    "uma": {
        "both": {
            "module": f"{EXPERTS}.DatasetSpecificMoEWrapper",
            "head_cls": f"{CLASSES}.MLP_EFS_Head",
            "dataset_mapping": {task: task for task in TASKS},
            "head_kwargs": {"wrap_property": False},
        }
    },
    "esen": {
        "energy": {"module": f"{CLASSES}.MLP_Energy_Head"},
        "forces": {"module": f"{CLASSES}.Linear_Force_Head"},
        "stress": {"module": f"{CLASSES}.MLP_Stress_Head"},
    },
}


def config(kind, *, lone, layers):
    experts = kind == "uma"
    own = {"ff_type": layers} if layers else {}
    return {
        "_target_": "fairchem.core.models.base.HydraModel",
        "backbone": BACKBONE | (UMA if experts else ESEN) | own,
        "heads": HEADS[kind],
        "pass_through_head_outputs": experts,
        "supports_single_atoms": lone,
        "model_id": "Tiny-0.1" if experts else None,
    }


def task(name, prop, datasets):
    """Return how a checkpoint describes one task."""
    atoms = prop == "forces"
    return {
        "_target_": f"{UNITS}.Task",
        "name": name,
        "level": "atom" if atoms else "system",
        "property": prop,
        "out_spec": {
            "_target_": f"{UNITS}.OutputSpec",
            "dim": {"energy": [1], "forces": [3], "stress": [1, 9]}[prop],
            "dtype": "float32",
        },
        "normalizer": {
            "_target_": "fairchem.core.modules.normalization.normalizer.Normalizer",
            "mean": 0.0,
            "rmsd": 1.5,
        },
        "datasets": datasets,
    }


def tasks(kind):
    if kind == "esen":  # stress is a separate task with a separate head
        return [task(p, p, ["omol"]) for p in ("energy", "forces", "stress")]
    return [task(f"{t}_{p}", p, [t]) for t in TASKS for p in ("energy", "forces")]


@contextmanager
def same_rolls():
    """Seed torch before each pass.

    Each pass turns every edge about its axis by a random angle. Two passes of the same
    model then differ by round-off.
    """

    def seed(module, _args):
        if type(module).__name__ in ("eSCNMDBackbone", "eSCNMDMoeBackbone"):
            torch.manual_seed(7)

    with torch.random.fork_rng():
        handle = register_module_forward_pre_hook(seed)
        try:
            yield
        finally:
            handle.remove()


@cache
def checkpoint(kind="uma", seed=0, lone=True, layers=None):
    """Write a checkpoint of random weights, once, and return its path."""
    import hydra
    from fairchem.core.units.mlip_unit.api.inference import MLIPInferenceCheckpoint

    made = config(kind, lone=lone, layers=layers)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = hydra.utils.instantiate(made)
        averaged = torch.optim.swa_utils.AveragedModel(model)
    path = Path(tempfile.mkdtemp()) / f"{kind}-{seed}.pt"
    saved = MLIPInferenceCheckpoint(
        model_config=made,
        model_state_dict=model.state_dict(),
        ema_state_dict=averaged.state_dict(),
        tasks_config=tasks(kind),
    )
    torch.save(saved, path)
    return path


def fairchem(kind="uma", task_name=None, *, seed=0, lone=True, layers=None, **settings):
    """Return a calculator; eager and unmerged unless ``settings`` differ.

    ``layers`` are the feed-forward layers: on a "grid" of angles, as in UMA, or in
    "spectral" form, as in eSEN.
    """
    from fairchem.core import FAIRChemCalculator
    from fairchem.core.units.mlip_unit import load_predict_unit
    from fairchem.core.units.mlip_unit.api.inference import InferenceSettings

    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # it seeds them
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # a warning at each load of a direct model
    try:
        with torch.random.fork_rng():
            unit = load_predict_unit(
                str(checkpoint(kind, seed, lone, layers)),
                inference_settings=InferenceSettings(
                    **{"activation_checkpointing": False} | settings
                ),
                device="cpu",
            )
    finally:
        logger.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
    name = task_name or ("omat" if kind == "uma" else "omol")
    return FAIRChemCalculator(unit, task_name=name)
