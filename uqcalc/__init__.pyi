"""The public names of uqcalc: what type checkers see and what is imported on use."""

from . import errors as errors, types as types
from .annotating.copies import (
    annotated_copy as annotated_copy,
    read_assessment as read_assessment,
)
from .annotating.featurefile import write_features as write_features
from .annotating.file import annotate_file as annotate_file
from .annotating.tables import write_tables as write_tables
from .annotating.trajectory import annotate as annotate
from .attacking.attack import attack as attack
from .backbones.committee import Committee as Committee
from .backbones.registry import tap as tap
from .backbones.rotation import RotationAverage as RotationAverage
from .calculator import (
    ReliableCalculator as ReliableCalculator,
    default_calculator as default_calculator,
)
from .cluster import RayWorkers as RayWorkers
from .distillation.fitting import distill as distill
from .errors import (
    LabelWarning as LabelWarning,
    UnreliableError as UnreliableError,
    UqcalcError as UqcalcError,
)
from .evaluation.evaluation import evaluate as evaluate
from .evaluation.guarantee import certify as certify
from .evaluation.members import evaluate_members as evaluate_members
from .fitting.adapt import adapt as adapt
from .fitting.recipe import Recipe as Recipe
from .fitting.several import fit_targets as fit_targets
from .fitting.training import fit as fit
from .labels.labels import Labels as Labels
from .learning.labelling import label as label
from .learning.loop import run_loop as run_loop
from .learning.selection import select as select
from .limits.halting import certify_halting as certify_halting
from .limits.thresholds import (
    calibrate_threshold as calibrate_threshold,
    error_curve as error_curve,
)
from .models.named import open_model as open_model
from .perturbation.fitting import perturb as perturb
from .perturbation.perturbation import Perturbation as Perturbation
from .policy import Policy as Policy, Threshold as Threshold
from .probe.attention import attention_entropy as attention_entropy
from .probe.probe import Probe as Probe
from .records import Level as Level
from .runfile.running import run_file as run_file
from .signals.conformal import ConformalInterval as ConformalInterval
from .signals.distance import LatentDistance as LatentDistance
from .signals.fitted import load_signal as load_signal
from .signals.flags import Flags as Flags
from .signals.force_delta import ForceDelta as ForceDelta
from .signals.functional import FunctionalSpread as FunctionalSpread
from .signals.label_free import (
    EnergySpread as EnergySpread,
    EnergyUncertainty as EnergyUncertainty,
    ForceSpread as ForceSpread,
    MaxForce as MaxForce,
    OrbConfidence as OrbConfidence,
    StressSpread as StressSpread,
)
from .signals.probe import ProbeSignal as ProbeSignal
from .signals.rigidity import PredictionRigidity as PredictionRigidity
from .signals.sanity import Sanity as Sanity
from .viewing.report import write_report as write_report
from .watching.asker import Ask as Ask
from .watching.eventlog import read_log as read_log
from .watching.monitor import Monitor as Monitor
from .watching.relaxation import relax as relax
from .watching.reliableframes import reliable_frames as reliable_frames
from .watching.rewinding import Rewind as Rewind

__version__: str
