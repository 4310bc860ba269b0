"""Do transformers, Megatron and SGLang agree on a model? Greedy answers and log-probs, side by side.

python tools/parity.py MODEL_FOLDER PROMPTS.jsonl [--prompts 16] [--new-tokens 24] [--threads 2] [--out FILE]

SGLang answers the prompts greedily; transformers answers them too, and both trainers' log-probs of SGLang's tokens
are compared with SGLang's own. float32. Exit status 1 when they disagree.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from areal_mega.config.errors import UserError
from areal_mega.config.options import ParallelOptions, PolicyOptions, RolloutOptions, RuntimeOptions
from areal_mega.data import PackedBatch, Prompt, Sample
from areal_mega.data.jsonl import read_prompts
from areal_mega.data.tokenizer import load_tokenizer, stop_tokens
from areal_mega.rollout.local_engines import LocalEngines
from areal_mega.rollout.sampler import Sampler
from areal_mega.rollout.server import EngineError, SGLangServer
from areal_mega.trainers.experience import pack_samples

# Rounding of float32 sums in different orders; a wrong layout or mask is a thousand times larger.
LIMIT = 1e-4


def main() -> int:
    arguments = parse_arguments()
    try:
        return compare(arguments)
    except (UserError, EngineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def compare(arguments: argparse.Namespace) -> int:
    """Print the report; 0 if all agree."""
    torch.set_num_threads(arguments.threads)
    tokenizer = load_tokenizer(arguments.model)
    prompts = read_prompts(arguments.data, "PROMPTS", tokenizer, 4096)[: arguments.prompts]
    samples = answer_with_sglang(arguments, tokenizer, prompts)
    batch = pack_samples(samples)
    mask = batch["loss_mask"]
    engine = batch["behavior_logprobs"][mask]
    oracle, same, rivals = answer_with_transformers(arguments.model, samples)
    answers = [{"tokens": s.tokens, "loss_mask": s.loss_mask} for s in samples]
    megatron, rival = score_with_megatron(arguments, PackedBatch.pack([*answers, *rivals])).chunk(2)
    ahead = (megatron > rival).split([s.response_length for s in samples])
    same_megatron = sum(bool(tokens.all()) for tokens in ahead)
    report: dict[str, Any] = {
        "model": arguments.model,
        "prompts": len(samples),
        "tokens": int(mask.sum()),
        "greedy answers equal, SGLang and transformers": f"{same} of {len(samples)}",
        "greedy answers equal, SGLang and Megatron": f"{same_megatron} of {len(samples)}",
    }
    for name, a, b in (
        ("SGLang - transformers", engine, oracle),
        ("Megatron - transformers", megatron, oracle),
        ("Megatron - SGLang", megatron, engine),
    ):
        difference = (a - b).double().abs()
        report[f"|d log-prob| {name}"] = {"mean": difference.mean().item(), "max": difference.max().item()}
    print(json.dumps(report, indent=2))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(report, indent=2) + "\n")
    worst = max(v["max"] for v in report.values() if isinstance(v, dict))
    return 0 if worst < LIMIT and same == same_megatron == len(samples) else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hugging Face model folder")
    parser.add_argument("data", help="JSONL of prompts")
    parser.add_argument("--prompts", type=int, default=16, help="how many of them")
    parser.add_argument("--new-tokens", type=int, default=24, help="longest answer")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each process")
    parser.add_argument("--out", help="also write the report to this file")
    return parser.parse_args()


def answer_with_sglang(arguments: argparse.Namespace, tokenizer: Any, prompts: list[Prompt]) -> list[Sample]:
    """Greedy answers with the engine's log-probs."""
    options = RolloutOptions(
        prompts_per_step=len(prompts),
        samples_per_prompt=1,
        max_prompt_tokens=max(len(p.tokens) for p in prompts),
        max_new_tokens=arguments.new_tokens,
        threads=arguments.threads,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        SGLangServer(
            arguments.model, options, dtype="float32", device="cpu", seed=1, log_path=Path(folder) / "engine.log"
        ) as server,
    ):
        sampler = Sampler(LocalEngines([server]), tokenizer, options, stop_tokens(arguments.model, tokenizer))
        return sampler.generate(prompts, 1, temperature=0)


@torch.no_grad()
def answer_with_transformers(path: str, samples: list[Sample]) -> tuple[torch.Tensor, int, list[dict[str, list]]]:
    """Log-probs of the samples' generated tokens, how many samples it would give greedily too, and the rivals.

    SGLang reports greedy tokens' log-probs at temperature 1. The rival of a generated token is the most likely other
    one: a sequence that ends with it, for each. A model that prefers every token to its rival answers alike.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    parts, same, rivals = [], 0, []
    for sample in samples:
        tokens = torch.tensor(sample.tokens)
        logprobs = model(tokens[None]).logits[0, :-1].log_softmax(-1)
        generated = torch.tensor(sample.loss_mask)[1:]
        parts.append(logprobs.gather(1, tokens[1:, None])[:, 0][generated])
        same += bool((logprobs.argmax(-1) == tokens[1:])[generated].all())
        others = logprobs.scatter(1, tokens[1:, None], -torch.inf).argmax(-1)
        for at in generated.nonzero()[:, 0].tolist():
            prefix = sample.tokens[: at + 1]
            rivals.append({"tokens": [*prefix, int(others[at])], "loss_mask": [False] * len(prefix) + [True]})
    return torch.cat(parts), same, rivals


def score_with_megatron(arguments: argparse.Namespace, batch: PackedBatch) -> torch.Tensor:
    """Megatron's log-probs of the batch's tokens with ``loss_mask``."""
    from areal_mega.runtime import distributed

    topology = distributed.initialize(RuntimeOptions("cpu", arguments.threads), ParallelOptions(), seed=1)
    from areal_mega.policy.model import MegatronModel

    model = MegatronModel(
        topology, arguments.model, PolicyOptions(), dtype="float32", optimizer=None, head="logprob", seed=1
    )
    return model.forward(batch)["logprobs"][batch["loss_mask"]]


if __name__ == "__main__":
    sys.exit(main())
