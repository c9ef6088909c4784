"""The table of backbones: a row has a small calculator and its expected results.

What every backbone must do is asserted once, in test_contract.py, for all rows. A new
backbone is tested by one row here; its special behaviour is tested in a separate file.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.mixing import SumCalculator
from backbones.aimnets import SPECIES, aimnet2, ion
from backbones.anis import ani_2x, ani_q, crystal, double
from backbones.fairchems import fairchem, same_rolls
from backbones.matgls import KINDS, matgl
from backbones.mattersims import UNITS, mattersim, without_network
from backbones.orbs import NEW, both_heads, default_dtype, orb_calculator, orb_model
from backbones.sevennets import crystal as silicon, sevennet
from backbones.toys import (
    ModuleCalculator,
    Springs,
    around,
    chgnet,
    mace_on_shared_models,
    scripted_model,
)
from builders import mace_calculator
from closeness import FLOAT64, NETWORK

from uqcalc import tap
from uqcalc.testing import contract_frames


Frames = dict[str, Atoms]


@dataclass(frozen=True)
class Case:
    """A further calculator of a backbone, tested with `check_backbone` only.

    ``options`` are those of `check_backbone`. ``apart`` checks each frame alone, if a
    bare calculator keeps results of one frame for the next. ``used`` calls the
    calculator before the check, if a new one can be copied and a used one cannot, with
    and without a tap.
    """

    make: Callable[[], Any]
    frames: Frames
    options: dict[str, Any] = field(default_factory=dict)
    apart: bool = False
    used: bool = False


@dataclass(frozen=True)
class Row:
    """A backbone: a tiny calculator of it, and what its tap must report.

    Parameters
    ----------
    package : str
        Imported first; the tests of the row are skipped without it.
    make : callable
        Returns a fresh calculator of the same weights at every call.
    another : callable or None
        Returns one of other weights; None if the package has one model only.
    model : callable
        Takes the calculator and returns the torch module that a pass calls.
    network : str
        Class of a module that is called once in a pass.
    width : int
        Length of the features of an atom.
    extras : set of str
        Part of ``provides`` beyond features, energy, forces and conservative forces.
    on_demand : set of str
        Part of ``provides`` that is given on request only.
    elements : set of int or None
        Atomic numbers that the model knows; None if every element is accepted.
    frames : dict of Atoms
        Structures for every test of the row.
    case : Case or None
        How the contract is checked, if it is not `Case(make, frames)`.
    cases : dict of Case
        More calculators of the backbone, for the contract.
    dtype : torch.dtype
        Of the features.
    bound : float
        Relative difference of two routes to one result, see closeness.py.
    reads : set of str or None
        Names of charge and spin that change the energy; None if the tap cannot know.
    watched : set of str or None
        Keys of ``atoms.info`` whose change is a new evaluation; None for all.
    batch : tuple of str or None
        Names of frames that are one pass together; None for all, empty if each frame
        is a pass of its own.
    passes : int
        Passes for each geometry.
    copies : bool
        Whether a calculator can be copied deeply.
    module : str or None
        For `uqcalc.tap`, which finds all other backbones by their class.
    around : callable
        Returns a context in which the calculator is built and used.
    """

    package: str
    make: Callable[..., Any]
    model: Callable[[Any], torch.nn.Module]
    network: str
    width: int
    frames: Frames
    another: Callable[[], Any] | None = None
    extras: frozenset[str] = frozenset()
    on_demand: frozenset[str] = frozenset()
    elements: frozenset[int] | None = None
    case: Case | None = None
    cases: dict[str, Case] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    bound: float = FLOAT64
    reads: frozenset[str] | None = frozenset()
    watched: frozenset[str] | None = frozenset()
    batch: tuple[str, ...] | None = None
    passes: int = 1
    copies: bool = True
    module: str | None = None
    around: Callable[[], AbstractContextManager[None]] = nullcontext

    def tap(self, calculator=None):
        """Return the backbone of ``calculator`` or of a fresh one."""
        return tap(calculator or self.make(), module=self.module)

    @property
    def frame(self) -> Atoms:
        """The first crystal, which has a stress; else the first frame. A copy."""
        frames = list(self.frames.values())
        return next((a for a in frames if a.pbc.all()), frames[0]).copy()

    def wanted(self, atoms: Atoms) -> list[str]:
        """Return the properties that this backbone gives of ``atoms``."""
        stress = ["stress"] if "stress" in self.extras and atoms.pbc.all() else []
        return ["energy", "forces", *stress]


def select(*names: str, **more: Atoms) -> Frames:
    frames = contract_frames()
    return {name: frames[name] for name in names or frames} | more


def metatomic(*outputs, **options):
    """Return the toy model; its module needs the package at import."""
    made = import_module("backbones.metatomics")
    named = [getattr(made, name) for name in outputs]
    give = {key: value for output in named for key, value in output.items()}
    return made.metatomic(give or made.EVERYTHING, **options)


def in_a_sum(make, other=Springs):
    return lambda: SumCalculator([make(), other()])


def pairs():
    return LennardJones(sigma=1.5, rc=4.0)


def crystals():
    return {"silicon": silicon(seed=1), "copper": bulk("Cu")} | select("crystal")


def boxed():
    """Without a volume metatomic's stress is infinite and cannot be compared."""
    frames = contract_frames()
    for name in ("molecule", "atom"):
        frames[name].center(vacuum=4.0)
    return frames


TRIO = ("molecule", "crystal", "atom")  # Orb and MatGL have no neighbour lists of films
MOLECULES = ("molecule", "atom")
PERIODIC = ("molecule", "crystal", "film")  # fairchem reads lone atoms from a table
ANI_FRAMES = select(*MOLECULES, crystal=crystal())
SALT = select("crystal")
# UMA's activations at points of a sphere are only nearly invariant to rotations
GRID = {"rtol": 1e-3}
HCNO_NA_CL = frozenset(SPECIES)
STRESS = frozenset({"stress"})
BOTH_STRESSES = frozenset({"stress", "conservative_stress"})
DIRECT = frozenset({"direct_forces", "direct_stress"})
UNCERTAIN = frozenset({"energy_uncertainties", "committee_energies"})
MEMBERS = frozenset({"committee_forces", "committee_energies"})


def ani_case(make, **options):
    return Case(make, ANI_FRAMES, options, apart=True)


MACE = Row(
    package="mace",
    make=mace_on_shared_models,
    another=lambda: mace_on_shared_models(1),
    model=lambda calculator: calculator.models[-1],
    network="ScaleShiftMACE",
    width=8,
    frames=select(),
    extras=STRESS | {"vectors"},
    on_demand=frozenset({"vectors"}),
    elements=HCNO_NA_CL,
    watched=frozenset({"charge", "spin"}),
    cases={
        "float32": Case(lambda: mace_on_shared_models(dtype="float32"), select()),
        "scalars": Case(lambda: mace_calculator(hidden="4x0e"), select(*MOLECULES)),
        "sum": Case(in_a_sum(mace_on_shared_models), select()),
        # its last bits change during its optimisation, with a tap and without
        "torchscript": Case(
            lambda: around([scripted_model()]), select(), {"exact": False}
        ),
    },
)
BACKBONES = {
    "mace": MACE,
    "mace-committee": replace(
        MACE,
        make=lambda: mace_on_shared_models(0, 1),
        another=lambda: mace_on_shared_models(0, 2),
        extras=MACE.extras | MEMBERS | {"committee_stresses"},
        on_demand=MACE.on_demand | {"committee_stresses"},
        passes=2,
        cases={},
    ),
    "chgnet": Row(
        package="chgnet",
        make=chgnet,
        model=lambda calculator: calculator.model,
        network="BondEncoder",
        width=64,
        frames=crystals(),
        extras=STRESS,
        elements=frozenset(range(1, 95)),
        dtype=torch.float32,
        bound=NETWORK,
    ),
    "orb": Row(
        package="orb_models",
        make=orb_calculator,
        another=lambda: orb_calculator(orb_model(seed=1)),
        model=lambda calculator: calculator.model.model,
        network="MoleculeGNS",
        width=16,
        frames=select(*TRIO),
        extras=BOTH_STRESSES | {"direct_forces", "direct_stress", "expected_errors"},
        on_demand=frozenset({"conservative_forces", "conservative_stress"}),
        case=Case(orb_calculator, select(*TRIO), {"force_atol": 1e-6, "rtol": 1e-6}),
        watched=frozenset({"charge", "spin"}),
        around=lambda: default_dtype(torch.float64),
        cases={
            kind: Case(
                lambda kind=kind: orb_calculator(orb_model(kind)),
                select(*TRIO),
                {"force_atol": 1e-6, "rtol": 1e-6},
            )
            for kind in ("v2", "v3-conservative")
        }
        | {
            # since 0.7 the model decides which forces are the results
            f"both-{name}": Case(
                lambda options=options: orb_calculator(both_heads(), **options),
                select(*TRIO),
                {"rtol": 1e-6},
            )
            for name, options in (
                {"heads": {}}
                if NEW
                else {f"{way}": {"conservative": way} for way in (True, False)}
            ).items()
        },
    ),
    "aimnet2": Row(
        package="aimnet.train.export_model",  # aimnet[train]
        make=aimnet2,
        another=lambda: aimnet2(seed=1),
        model=lambda calculator: calculator.base_calc.model,
        network="AIMNet2",
        width=256,
        frames=select(ion=ion(), anion=ion(-1), benzene=ion(1, "C6H6")),
        extras=STRESS | {"charges"},
        elements=HCNO_NA_CL,
        # energies are sums in float64 of networks in float32: noise of 1e-7 eV; a
        # weak reference to what was validated keeps a used calculator from pickling
        case=Case(
            aimnet2, select(ion=ion()), {"force_atol": 2e-4}, apart=True, used=True
        ),
        dtype=torch.float32,
        bound=NETWORK,
        reads=frozenset({"charge"}),
        watched=frozenset({"charge"}),
        batch=("molecule", "ion", "anion", "benzene"),
    ),
    "torchani": Row(
        package="torchani",
        make=lambda: double(ani_2x()),
        another=lambda: double(ani_2x(seed=1)),
        model=lambda calculator: calculator.model,
        network="Ensemble",
        width=1008,
        frames=ANI_FRAMES,
        extras=STRESS | MEMBERS,
        on_demand=MEMBERS,
        elements=frozenset({1, 6, 7, 8, 9, 16, 17}),
        case=ani_case(lambda: double(ani_2x())),
        batch=(),
        cases={
            "fdotr": ani_case(lambda: double(ani_2x(), stress_kind="fdotr")),
            # the repulsion is steep: the error of a difference goes with the step
            # squared
            "charges": ani_case(lambda: double(ani_q()), finite_difference_step=3e-4),
            # a total of -3114 eV has a resolution of 2e-4 eV in float32
            "float32": ani_case(
                lambda: ani_2x().ase(), finite_difference_step=1e-2, force_atol=2e-2
            ),
        },
    ),
    "matgl": Row(
        package="matgl.ext.ase",
        make=matgl,
        another=lambda: matgl(seed=1),
        model=lambda calculator: calculator.potential.model,
        network="TensorNet",
        width=16,
        frames=select(*TRIO),
        extras=BOTH_STRESSES,
        elements=frozenset({1, 6, 8, 11, 17}),
        dtype=torch.float32,
        bound=NETWORK,
        cases={
            # with two threads SO3Net's own sums differ in the last bits, pass by pass
            kind: Case(
                lambda kind=kind: matgl(kind),
                select(*TRIO),
                {"exact": kind != "SO3Net"},
            )
            for kind in KINDS
            if kind != "TensorNet"
        }
        | {
            "GPa": Case(lambda: matgl(unit="GPa"), SALT),
            "GPa-voigt": Case(lambda: matgl(unit="GPa", use_voigt=True), SALT),
            # its kernels need nvalchemi-toolkit-ops
            "no-warp": Case(lambda: matgl(size={"use_warp": False}), select(*TRIO)),
            "sum": Case(in_a_sum(matgl, pairs), SALT),
        },
    ),
    "metatomic": Row(
        package="metatomic_ase",
        make=metatomic,
        another=lambda: metatomic(seed=1),
        model=lambda calculator: calculator.model().module,
        network="Toy",
        width=5,
        frames=boxed(),
        extras=BOTH_STRESSES | DIRECT | UNCERTAIN,
        on_demand=DIRECT | UNCERTAIN,
        elements=frozenset({1, 6, 8, 11, 17}),
        bound=NETWORK,
        copies=False,
        cases={
            "direct": Case(lambda: metatomic(non_conservative=True), boxed()),
            "direct-forces": Case(
                lambda: metatomic(non_conservative="forces"), boxed()
            ),
            "no-heads": Case(lambda: metatomic("ENERGY", "FEATURE"), boxed()),
            "sum": Case(in_a_sum(metatomic, pairs), SALT),
        },
    ),
    "sevennet": Row(
        package="sevenn.calculator",
        make=sevennet,
        another=lambda: sevennet("7net-0_22May2024"),
        model=lambda calculator: calculator.model,
        network="AtomGraphSequential",
        width=64,
        frames=select(),
        extras=STRESS | {"vectors"},
        elements=frozenset(range(1, 95)) - set(range(84, 89)),  # no Po to Ra
        dtype=torch.float32,
        bound=NETWORK,
        cases={
            "methods": Case(
                lambda: sevennet("7net-mf-0", modal="PBE"), {"Si": silicon()}
            ),
            # a sum with another part: no native batch, and separate numbers of the
            # model
            "sum": Case(in_a_sum(sevennet, pairs), SALT),
        },
    ),
    "fairchem": Row(
        package="fairchem.core",
        make=fairchem,
        another=lambda: fairchem(seed=1),
        model=lambda calculator: calculator.predictor.model.module,
        network="HydraModel",
        width=8,
        frames=select(*PERIODIC),
        extras=STRESS | {"vectors"},
        elements=frozenset(range(1, 100)),
        dtype=torch.float32,
        bound=NETWORK,
        reads=frozenset({"charge", "spin"}),
        watched=frozenset({"charge", "spin"}),
        around=same_rolls,
        case=Case(fairchem, select(*PERIODIC), GRID),
        cases={
            "molecules": Case(
                lambda: fairchem(task_name="omol"), select("molecule"), GRID
            ),
            "float64": Case(
                lambda: fairchem(base_precision_dtype="float64", layers="spectral"),
                select(*PERIODIC),
            ),
            "checkpointed": Case(lambda: fairchem(activation_checkpointing=True), SALT),
            # its experts are merged for one composition
            "merged": Case(lambda: fairchem(merge_mole=True), SALT),
            "sum": Case(in_a_sum(fairchem, pairs), SALT),
        },
    ),
    "fairchem-direct": Row(
        package="fairchem.core",
        make=lambda: fairchem("esen"),
        another=lambda: fairchem("esen", seed=1),
        model=lambda calculator: calculator.predictor.model.module,
        network="HydraModel",
        width=8,
        frames=select(*PERIODIC),
        extras=BOTH_STRESSES | DIRECT | {"vectors"},
        on_demand=frozenset({"conservative_forces", "conservative_stress"}),
        elements=frozenset(range(1, 100)),
        dtype=torch.float32,
        bound=NETWORK,
        reads=frozenset({"charge", "spin"}),
        watched=frozenset({"charge", "spin"}),
        around=same_rolls,
        cases={
            "float64": Case(
                lambda: fairchem("esen", base_precision_dtype="float64"),
                select(*PERIODIC),
            )
        },
    ),
    "mattersim": Row(
        package="mattersim.forcefield.potential",
        make=mattersim,
        another=lambda: mattersim(seed=1),
        model=lambda calculator: calculator.potential.model,
        network="SphericalBasisLayer",
        width=UNITS,
        frames=select(),
        extras=STRESS,
        elements=frozenset(range(1, 95)),
        dtype=torch.float32,
        bound=NETWORK,
        copies=False,
        around=without_network,
        cases={
            "no-stress": Case(lambda: mattersim(compute_stress=False), SALT),
            "sum": Case(in_a_sum(mattersim, pairs), SALT),
        },
    ),
    "module": Row(
        package="torch",
        make=ModuleCalculator,
        another=lambda: ModuleCalculator(seed=1),
        model=lambda calculator: calculator.model,
        network="PairModel",
        width=5,
        frames=select(*MOLECULES),
        reads=None,
        watched=None,
        batch=(),
        module="model.readout",
    ),
}


def cases() -> dict[str, tuple[Row, Case]]:
    """Return every calculator for the test of the contract, by ``backbone-case``."""
    found = {}
    for name, row in BACKBONES.items():
        found[name] = (row, row.case or Case(row.tap, row.frames))
        found |= {f"{name}-{case}": (row, more) for case, more in row.cases.items()}
    return found


def rows(keep=None):
    """Return the names of all rows, or of those for which ``keep`` is true."""
    return [name for name, row in BACKBONES.items() if keep is None or keep(row)]


@contextmanager
def opened(row: Row):
    """Import the package, or skip; then enter the context of the backbone."""
    pytest.importorskip(row.package)
    with row.around():
        yield row


def alike(ours, theirs) -> bool:
    """Whether two dictionaries of results hold the same bits."""
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[key], theirs[key]) for key in theirs
    )
