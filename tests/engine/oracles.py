"""Prompts, and what `transformers` says of the engine's samples."""

import random

import torch
from models import VOCAB

from areal_mega.data.sample import Prompt


def make_prompts(lengths, seed=0):
    draw = random.Random(seed)
    tokens = [[draw.randrange(3, VOCAB) for _ in range(length)] for length in lengths]
    return [Prompt(id=f"p{i}", tokens=t, text="", answer="") for i, t in enumerate(tokens)]


def response_of(sample):
    return sample.tokens[len(sample.prompt.tokens) :]


@torch.no_grad()
def logprobs_by(model, tokens, temperature):
    """``[len(tokens), V]``: row t is the distribution that token t was drawn from; row 0 is zero."""
    logprobs = (model(torch.tensor([tokens])).logits[0] / temperature).log_softmax(-1)
    return torch.cat([torch.zeros(1, logprobs.shape[1]), logprobs[:-1]])


def assert_logprobs_are_those_of(model, samples, temperature=1.0):
    for sample in samples:
        tokens, mask = torch.tensor(sample.tokens), torch.tensor(sample.loss_mask)
        expected = logprobs_by(model, sample.tokens, temperature).gather(1, tokens[:, None])[:, 0] * mask
        torch.testing.assert_close(torch.tensor(sample.behavior_logprobs), expected, rtol=0, atol=2e-6)


def assert_greedy_for(model, samples):
    for sample in samples:
        best = logprobs_by(model, sample.tokens, 1.0).argmax(-1)[len(sample.prompt.tokens) :]
        assert response_of(sample) == best.tolist()
