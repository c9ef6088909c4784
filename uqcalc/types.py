"""The types that public functions take and return, in one place.

They are for annotations and for reading documentation; nothing here has to be built by
hand. Those that a script does build are in `uqcalc` itself, errors in `uqcalc.errors`.
"""

from __future__ import annotations

from uqcalc.annotating.featurefile import FeatureSummary
from uqcalc.annotating.tally import AnnotationSummary, WorstFrame
from uqcalc.attacking.ascent import AttackSettings
from uqcalc.attacking.path import AttackPath
from uqcalc.backbones import Backbone, Prediction
from uqcalc.backbones.differentiable import Differentiable
from uqcalc.backbones.passmemory import Costs
from uqcalc.backbones.prediction import Capture
from uqcalc.distillation.card import HeadCard
from uqcalc.distillation.head import DirectNetwork, DistilledHead
from uqcalc.evaluation.evaluation import Evaluation, Tested
from uqcalc.evaluation.members import MemberScores
from uqcalc.fitting.training import FitReport
from uqcalc.geometry.environments import Environments
from uqcalc.labels.dataset import Dataset
from uqcalc.learning.labelling import LabelSummary
from uqcalc.learning.loop import LoopReport
from uqcalc.learning.selection import Selection
from uqcalc.limits.halting import HaltingGuarantee
from uqcalc.limits.judgedruns import JudgedRun
from uqcalc.limits.runlimits import RunLimits
from uqcalc.limits.thresholds import ErrorCurve
from uqcalc.perturbation.card import PerturbationCard
from uqcalc.perturbation.fitting import PerturbationSettings
from uqcalc.perturbation.layers import Layer
from uqcalc.perturbation.members import Members
from uqcalc.perturbation.noise import Noise
from uqcalc.probe.addedpaths import AddedPaths
from uqcalc.probe.batch import Batch, BatchPass
from uqcalc.probe.card import Card, Guarantee, RegimeCount
from uqcalc.probe.inputs import Statistics
from uqcalc.probe.network import ProbeNetwork, Shape
from uqcalc.probe.reading import ProbeReading
from uqcalc.probe.seen import Seen
from uqcalc.probe.stacked import StackedOutput, StackedPaths
from uqcalc.records import Assessment, BandEvent, Event, Level, Reading, Verdict
from uqcalc.runfile.running import RunOutcome
from uqcalc.signals.base import Signal, TensorReading
from uqcalc.signals.card import HeldOut, SignalCard
from uqcalc.signals.distance import PerElement
from uqcalc.signals.fitted import FittedSignal
from uqcalc.signals.rigidity import Rigidity
from uqcalc.signals.samples import Split
from uqcalc.watching.asker import Asker
from uqcalc.watching.band import BandAssessment
from uqcalc.watching.relaxation import Outcome, Relaxation
from uqcalc.watching.reliableframes import ReliableFrames
from uqcalc.watching.rewinding import Rewound
from uqcalc.watching.settings import HaltingStatement
from uqcalc.watching.trigger import Trigger


__all__ = [
    "AddedPaths",
    "AnnotationSummary",
    "Asker",
    "Assessment",
    "AttackPath",
    "AttackSettings",
    "Backbone",
    "BandAssessment",
    "BandEvent",
    "Batch",
    "BatchPass",
    "Capture",
    "Card",
    "Costs",
    "Dataset",
    "Differentiable",
    "DirectNetwork",
    "DistilledHead",
    "Environments",
    "ErrorCurve",
    "Evaluation",
    "Event",
    "FeatureSummary",
    "FitReport",
    "FittedSignal",
    "Guarantee",
    "HaltingGuarantee",
    "HaltingStatement",
    "HeadCard",
    "HeldOut",
    "JudgedRun",
    "LabelSummary",
    "Layer",
    "Level",
    "LoopReport",
    "MemberScores",
    "Members",
    "Noise",
    "Outcome",
    "PerElement",
    "PerturbationCard",
    "PerturbationSettings",
    "Prediction",
    "ProbeNetwork",
    "ProbeReading",
    "Reading",
    "RegimeCount",
    "Relaxation",
    "ReliableFrames",
    "Rewound",
    "Rigidity",
    "RunLimits",
    "RunOutcome",
    "Seen",
    "Selection",
    "Shape",
    "Signal",
    "SignalCard",
    "Split",
    "StackedOutput",
    "StackedPaths",
    "Statistics",
    "TensorReading",
    "Tested",
    "Trigger",
    "Verdict",
    "WorstFrame",
]
