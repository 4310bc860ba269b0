"""Options of tools/serve_reward.py."""

from __future__ import annotations

from dataclasses import dataclass

from areal_mega.config.options.fields import group, option
from areal_mega.config.options.policy import ModelOptions
from areal_mega.config.options.run import RuntimeOptions


@dataclass
class ServeRewardOptions:
    """Options of tools/serve_reward.py."""

    model: ModelOptions = group(
        ModelOptions, "The reward model: what tools/train_reward.py saved, or a classifier of one label."
    )
    host: str = option("127.0.0.1", "Address to listen on; 0.0.0.0: all of this machine's, without any access control.")
    port: int = option(8010, "Port to listen on; 0: one that is free.", minimum=0, maximum=65535)
    max_tokens: int = option(8192, "Longest prompt plus response; a longer one is refused.", minimum=2)
    batch: int = option(16, "Responses that are scored together, at most.", minimum=1)
    chat: bool = option(
        False,
        "Put the conversation into the reward model's own chat template, rather than take the policy's prompt as it "
        "is: for a reward model of another family than the policy's.",
    )
    runtime: RuntimeOptions = group(RuntimeOptions, "Device, threads.")
