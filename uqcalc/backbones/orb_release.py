"""The differences between releases of orb-models.

Up to 0.5 the model holds the configuration of its graphs. In 0.7 an adapter makes the
graphs: loaders return model and adapter, and the calculator takes both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import BaseCalculator


def orb_calculator(made: Any, device: str | None = None) -> BaseCalculator:
    """Return Orb's calculator for the output of one of its loaders.

    Parameters
    ----------
    made : model, or tuple of model and adapter
        As ``orb_models.forcefield.pretrained`` returns it.
    device : str, optional
        Torch device; by default Orb's choice.

    Raises
    ------
    ModuleNotFoundError
        If orb-models is not installed.
    """
    parts = made if isinstance(made, tuple) else (made,)
    calculator: BaseCalculator = calculator_class()(*parts, device=device)
    return calculator


def calculator_class() -> Callable[..., Any]:
    """Return the class ``ORBCalculator`` of the installed release."""
    try:
        from orb_models.forcefield.inference.calculator import ORBCalculator
    except ModuleNotFoundError as error:
        if error.name != "orb_models.forcefield.inference":
            raise
        from orb_models.forcefield.calculator import ORBCalculator
    found: Callable[..., Any] = ORBCalculator
    return found


def orb_reach(owner: Any) -> tuple[float, int]:
    """Return the cutoff in Å and the largest number of neighbours of the graphs."""
    maker = owner.adapter if hasattr(owner, "adapter") else owner.system_config
    return float(maker.radius), int(maker.max_num_neighbors)


def orb_graph(owner: Any, atoms: Atoms) -> Any:
    """Return the graph as the calculator makes it, in the dtype of the model."""
    dtype = next(owner.model.parameters()).dtype
    options = {
        "max_num_neighbors": owner.max_num_neighbors,
        "edge_method": owner.edge_method,
        "half_supercell": owner.half_supercell,
        "device": owner.device,
        "output_dtype": dtype,
        "graph_construction_dtype": dtype,
    }
    if hasattr(owner, "adapter"):
        return owner.adapter.from_ase_atoms(atoms, **options).to(owner.device)
    from orb_models.forcefield.atomic_system import ase_atoms_to_atom_graphs

    options["system_config"] = owner.system_config
    return ase_atoms_to_atom_graphs(atoms, **options).to(owner.device)


def orb_batch(graphs: Sequence[Any]) -> Any:
    """Return one batch of graphs."""
    if hasattr(type(graphs[0]), "batch"):
        return type(graphs[0]).batch(list(graphs))
    from orb_models.forcefield.base import batch_graphs

    return batch_graphs(list(graphs))
