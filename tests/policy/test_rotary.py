"""Rotary positions: of each row in its own sequence, with the frequencies of transformers."""

import pytest
import torch
from models import tiny_model

from areal_mega.policy.packing import PackedSequences, Slicing
from areal_mega.policy.rotary import PackedRotary

LENGTHS = (5, 1, 12)


def angles(hf, slicing=None, **options):
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0)
    packed = PackedSequences.plan(cu_seqlens, torch.device("cpu"), torch.float32, slicing)
    rotary = PackedRotary(hf, **options)
    return rotary(rotary.get_rotary_seq_len(None, None, None, None, packed)), packed


@pytest.fixture(scope="module")
def hf():
    return tiny_model("llama").config


def test_positions_start_anew_with_every_sequence(topology, hf):
    got, _ = angles(hf)
    assert got.shape == (sum(LENGTHS), 1, 1, 8)
    frequencies = 10000.0 ** -(torch.arange(0, 8, 2).double() / 8)
    expected = torch.cat([torch.arange(n).double()[:, None] * frequencies for n in LENGTHS])
    torch.testing.assert_close(got[:, 0, 0, :4].double(), expected, rtol=1e-6, atol=0)
    assert torch.equal(got[..., :4], got[..., 4:])


def test_rows_of_context_ranks_have_their_own_positions(topology, hf):
    whole, _ = angles(hf)
    for rank in range(2):
        got, packed = angles(hf, Slicing(2, rank))
        assert torch.equal(got[packed.real], whole[packed.tokens[packed.real]])


def test_latent_attention_gets_the_factor_of_yarn(topology):
    """DeepSeek's yarn, against the cos that transformers' model has."""
    rope = {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
        "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.5,
    }  # fmt: skip
    model = tiny_model("deepseek_v3", rope_parameters=rope)
    (got, scale), packed = angles(model.config, latent=True, with_scale=True)
    cos, _ = model.model.rotary_emb(torch.zeros(1, 1, 1), packed.positions[None])
    torch.testing.assert_close(got[:, 0].cos() * scale, cos[0], rtol=0, atol=1e-6)
    assert scale != 1
