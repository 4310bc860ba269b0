"""Generation, selection of groups, and new weights for the engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from areal_mega.config.options.fields import group, option

WORKFLOW_NAMES = ("single_turn", "multi_turn", "tools", "openai")
TOOL_NAMES = ("calculator", "python", "search")


@dataclass
class SelectionOptions:
    """Which groups are trained on. What is left out is replaced by more, and counted."""

    mixed: bool = option(
        False,
        "Only groups whose samples had different outcomes: the others have no advantage (DAPO's dynamic sampling).",
    )
    min_success: float = option(0.0, "Only groups with at least this mean outcome.", minimum=0, maximum=1)
    max_success: float = option(1.0, "Only groups with at most this mean outcome.", minimum=0, maximum=1)
    oversample: float = option(
        1.0, "Start so many groups for each of a batch, and cut the slowest when the batch is full.", minimum=1
    )
    max_draws: float = option(
        10.0,
        "Prompts drawn for one batch, as a multiple of its size, before the run stops for want of groups.",
        above=1,
    )


@dataclass
class RolloutOptions:
    mode: str = option(
        "sync",
        "sync: generate, then train. one-step: generate the next batch meanwhile. async: generate all the time, "
        "at most max_staleness batches ahead.",
        choices=("sync", "one-step", "async"),
    )
    max_staleness: int = option(
        4, "async: versions that a sample's first token may be old when trained on (eta).", minimum=1
    )
    max_running: int | None = option(
        None, "Groups under way at the same time; null: as many as the mode allows.", minimum=1
    )
    selection: SelectionOptions = group(SelectionOptions, "Which groups are trained on.")
    prompts_per_step: int = option(32, "Prompts drawn for each training step.", minimum=1)
    samples_per_prompt: int = option(8, "Samples of each prompt: the group size G.", minimum=1)
    max_prompt_tokens: int = option(512, "Longest prompt; a longer one stops the run, naming its line.", minimum=1)
    max_new_tokens: int = option(
        512, "Longest response, or turn of one; max_prompt_tokens and this together bound a whole sample.", minimum=1
    )
    temperature: float = option(1.0, "Sampling temperature; the trainer's log-probs use the same.", above=0)
    top_p: float = option(1.0, "Nucleus sampling in training; must be 1 (see the check).")
    top_k: int = option(-1, "Top-k sampling in training; must be -1 (see the check).")
    stop: list[str] = option([], "Strings that end a response, beside the end-of-sequence token.")
    engines: int = option(1, "SGLang engines; requests are divided over them.", minimum=1)
    tensor: int = option(1, "Tensor-parallel size of each SGLang engine.", minimum=1)
    expert: int = option(1, "Expert-parallel size of each SGLang engine; divides tensor.", minimum=1)
    port: int = option(0, "Port of the engine; 0 takes a free one.", minimum=0, maximum=65535)
    start_timeout: float = option(300.0, "Seconds the engine may take to answer after its start.", above=0)
    request_timeout: float = option(600.0, "Seconds one generation request may take.", above=0)
    threads: int = option(1, "CPU threads of each engine process.", minimum=1)
    workflow: str = option(
        "single_turn",
        f"How a prompt becomes samples (docs/rollout.md): {', '.join(WORKFLOW_NAMES)}, or your own as "
        "package.module:function.",
    )
    max_turns: int = option(8, "multi_turn, tools: most turns of the model in a sample.", minimum=1)
    environment: str | None = option(None, "multi_turn: what the model talks with, as package.module:Class.")
    tools: list[str] = option([], f"tools: of {', '.join(TOOL_NAMES)}, or your own as package.module:NAME.")
    documents: str | None = option(None, "The tool search: JSONL file of what it finds, a text (and title) a line.")
    agent: str | None = option(None, "openai: the agent, as package.module:function.")
    engine_wait: float = option(
        3600.0,
        "Seconds a request waits for an engine when none is alive; more than a training step, as an engine that was "
        "started again gets its weights after it.",
        above=0,
    )
    sglang: dict[str, Any] = option(
        {},
        "Fields of SGLang's ServerArgs, passed on as they are. On a GPU, which the trainers share, "
        "mem_fraction_static is 0.3 unless set here.",
    )


@dataclass
class ReshardingOptions:
    transport: str = option(
        "colocated",
        "colocated: the engines are on the trainers' devices. disaggregated: on devices of their own, behind the "
        "trainers' in the same machine. disk: there too, through files, where processes cannot reach one another.",
        choices=("colocated", "disaggregated", "disk"),
    )
    folder: str | None = option(
        None,
        "Folder for the files of resharding.transport=disk, on a file system that trainers and engines share; they are "
        "there as long as an update takes. null: the run directory.",
    )
    delta: bool = option(
        False,
        "Send only elements that changed since the last update, bit by bit, where that is shorter. Each training rank "
        "keeps what it sent last, on its device. Not for resharding.transport=colocated.",
    )
    buffer_mb: int = option(
        1024, "MiB of the buffer of each engine rank; a larger share goes in chunks, through its halves.", minimum=1
    )
    verify: str = option(
        "first",
        "Which updates are followed by a comparison of checksums of every tensor on both sides.",
        choices=("always", "first", "never"),
    )
    restarts: int = option(
        2, "Times that an engine which dies is started again before it got to serve once more.", minimum=0
    )
