"""The experts that the engine chose, against those that transformers chooses for the same tokens."""

from dataclasses import replace

import pytest
import torch
from engine.conftest import EOS
from engine.oracles import assert_logprobs_are_those_of, make_prompts
from models import save_tiny_model

from areal_mega.config.derived import TELLS_EXPERTS
from areal_mega.rollout.local_engines import LocalEngines
from areal_mega.rollout.sampler import Sampler
from areal_mega.rollout.server import SGLangServer
from areal_mega.trainers.experience import pack_samples

pytestmark = pytest.mark.engine


@torch.no_grad()
def chosen_by(model, tokens):
    """``[n, layers, k]`` the experts of each token, in the order of their numbers."""
    logits = []
    gates = [layer.mlp.gate for layer in model.model.layers]
    hooks = [gate.register_forward_hook(lambda _m, _i, out: logits.append(out)) for gate in gates]
    model(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    scores = [out[0] if isinstance(out, tuple) else out for out in logits]
    k = model.config.num_experts_per_tok
    return torch.stack([s.reshape(len(tokens), -1).topk(k).indices.sort(-1).values for s in scores], dim=1)


def test_the_engine_tells_which_experts_it_chose(tmp_path, options, tokenizer):
    model = save_tiny_model(tmp_path / "model", "qwen3_moe")
    layers, k = model.config.num_hidden_layers, model.config.num_experts_per_tok
    options = replace(options, sglang={**options.sglang, TELLS_EXPERTS: True})
    log = tmp_path / "engine.log"
    with SGLangServer(str(tmp_path / "model"), options, dtype="float32", device="cpu", seed=1, log_path=log) as server:
        server.wait_ready()
        prompts = make_prompts([3, 9, 20, 9])
        samples = Sampler(LocalEngines([server]), tokenizer, options, [EOS]).generate(prompts, 4, temperature=1.0)
        # The same prompts again, whose beginnings are in the cache now.
        samples += Sampler(LocalEngines([server]), tokenizer, options, [EOS]).generate(prompts, 4, temperature=1.0)

    assert_logprobs_are_those_of(model, samples)
    for sample in samples:
        assert sample.routes.shape == (len(sample.tokens) - 1, layers * k)
        routes = torch.from_numpy(sample.routes).long().view(-1, layers, k).sort(-1).values
        assert torch.equal(routes, chosen_by(model, sample.tokens)[:-1])
    batch = pack_samples(samples)
    ends = batch.cu_seqlens[1:].long() - 1
    assert (batch["routed_experts"][ends] == -1).all() and (batch["routed_experts"] >= 0).sum() == sum(
        sample.routes.size for sample in samples
    )
