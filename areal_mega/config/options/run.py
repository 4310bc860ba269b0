"""Evaluation on the way, device, telemetry, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from areal_mega.config.options.fields import option


@dataclass
class EvaluationOptions:
    every: int = option(0, "Evaluate each so many steps; 0: only before and after.", minimum=0)
    keep_best: bool = option(
        False, "Keep the model of the evaluation with the highest accuracy, in the run directory's best/."
    )
    temperature: float = option(0.0, "Sampling temperature of evaluation; 0 is greedy.", minimum=0)
    samples: int = option(1, "Samples of each held-out prompt; accuracy is their mean.", minimum=1)
    show: int = option(8, "Sampled answers kept before and after, for the report.", minimum=0)


@dataclass
class RuntimeOptions:
    device: str = option("auto", "auto: cuda where there is a GPU.", choices=("auto", "cpu", "cuda"))
    threads: int = option(1, "CPU threads of each trainer rank.", minimum=1)
    timeout: float = option(600.0, "Seconds a collective may take before the run is stopped.", above=0)


@dataclass
class TelemetryOptions:
    progress: bool = option(True, "Live display; without a terminal one line a step.")
    tensorboard: bool = option(False, "Also write TensorBoard events.")
    plot: bool = option(True, "Draw the run's curves as PNG at the end.")


@dataclass
class CheckpointOptions:
    every: int = option(0, "Save a training checkpoint each so many steps, and at the end; 0: none.", minimum=0)
    keep: int = option(2, "Newest checkpoints that are kept.", minimum=1)
    skip_damaged: bool = option(
        False, "Resume from the newest whole checkpoint when newer ones are damaged; false: a damaged one is an error."
    )
