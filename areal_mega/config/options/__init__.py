"""Every option of every program, typed, with its default and its help text.

An option is written once, in the file of its group. Hydra reads the dataclasses, ``--help`` prints the help texts, and
`areal_mega.config.checks` stops runs whose options contradict each other. Names are the field's
words; the symbol a paper uses stands in the help text.
"""

from areal_mega.config.options.algorithm import AlgorithmOptions
from areal_mega.config.options.data import (
    DATA_FORMATS,
    PROMPT_TYPES,
    CurriculumStageOptions,
    DataOptions,
    DataSetOptions,
)
from areal_mega.config.options.evaluate import (
    EvaluateOptions,
    EvaluationDataOptions,
    EvaluationRewardOptions,
    EvaluationRolloutOptions,
)
from areal_mega.config.options.policy import (
    CriticOptions,
    ModelOptions,
    MoEOptions,
    OffloadOptions,
    OptimizerOptions,
    ParallelOptions,
    PolicyOptions,
    RecomputeOptions,
)
from areal_mega.config.options.reward import VERIFIER_NAMES, HttpOptions, RewardOptions
from areal_mega.config.options.rollout import (
    TOOL_NAMES,
    WORKFLOW_NAMES,
    ReshardingOptions,
    RolloutOptions,
    SelectionOptions,
)
from areal_mega.config.options.run import CheckpointOptions, EvaluationOptions, RuntimeOptions, TelemetryOptions
from areal_mega.config.options.serve import ServeRewardOptions
from areal_mega.config.options.training import (
    CommonOptions,
    DPOOptions,
    KeepOptions,
    PPOOptions,
    PreferenceOptions,
    RejectionOptions,
    RewardModelOptions,
    SFTOptions,
    SupervisedOptions,
)

__all__ = [
    "DATA_FORMATS",
    "PROMPT_TYPES",
    "TOOL_NAMES",
    "VERIFIER_NAMES",
    "WORKFLOW_NAMES",
    "AlgorithmOptions",
    "CheckpointOptions",
    "CommonOptions",
    "CriticOptions",
    "CurriculumStageOptions",
    "DPOOptions",
    "DataOptions",
    "DataSetOptions",
    "EvaluateOptions",
    "EvaluationDataOptions",
    "EvaluationOptions",
    "EvaluationRewardOptions",
    "EvaluationRolloutOptions",
    "HttpOptions",
    "KeepOptions",
    "MoEOptions",
    "ModelOptions",
    "OffloadOptions",
    "OptimizerOptions",
    "PPOOptions",
    "ParallelOptions",
    "PolicyOptions",
    "PreferenceOptions",
    "RecomputeOptions",
    "RejectionOptions",
    "ReshardingOptions",
    "RewardModelOptions",
    "RewardOptions",
    "RolloutOptions",
    "RuntimeOptions",
    "SFTOptions",
    "SelectionOptions",
    "ServeRewardOptions",
    "SupervisedOptions",
    "TelemetryOptions",
]
