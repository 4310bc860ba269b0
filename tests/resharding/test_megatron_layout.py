"""Megatron's own GPTModel says what names and shapes each rank has; test_parity proves the values."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from resharding.families import CONFIGS, config_of, indexed

from areal_mega.config.errors import UserError
from areal_mega.resharding.layouts import MegatronGrid, MegatronPlace, file_layout, megatron_layout

WORKER = Path(__file__).with_name("megatron_worker.py")
MIXTURES = ("qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v3")
GRIDS = [
    *((family, MegatronGrid(tp=4), {}) for family in CONFIGS),  # with two KV heads, but for DeepSeek's
    *((family, MegatronGrid(tp=2, pp=2, vpp=2), {}) for family in CONFIGS),
    *((family, MegatronGrid(tp=2, dp=2, ep=2, etp=2), {}) for family in MIXTURES),
    *((family, MegatronGrid(tp=2, pp=2, dp=2, ep=4), {}) for family in MIXTURES),
    ("llama", MegatronGrid(tp=8), {}),  # cuts inside attention heads
    ("qwen3", MegatronGrid(pp=3, first_layers=1, last_layers=1), {}),
    ("qwen3", MegatronGrid(pp=4, vpp=2, first_layers=2, last_layers=2), {"num_hidden_layers": 12}),
    ("qwen3_moe", MegatronGrid(pp=2, dp=2, ep=2), {"mlp_only_layers": [1]}),
]


def name_of(case):
    family, grid, _ = case
    given = {k: v for k, v in vars(grid).items() if v not in (1, None, False)}
    return family + "".join(f"-{k}{v}" for k, v in given.items())


@pytest.fixture(scope="module")
def built():
    """Name → shape of every rank's parameters in Megatron; all in one process, since its imports take long."""
    jobs = [(family, {k: int(v or 0) for k, v in vars(grid).items()}, overrides) for family, grid, overrides in GRIDS]
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parents[1])}
    command = [sys.executable, str(WORKER), json.dumps(jobs)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
    assert run.returncode == 0, run.stderr[-6000:]
    results = json.loads(run.stdout.rpartition("RESULT")[2])
    return {name_of(case): result for case, result in zip(GRIDS, results, strict=True)}


@pytest.mark.distributed
@pytest.mark.parametrize("case", GRIDS, ids=name_of)
def test_the_table_has_the_parameters_of_megatrons_model_on_every_rank(case, built):
    family, grid, overrides = case
    hf = config_of(family, **overrides)
    expected = [{name: tuple(shape) for name, shape in rank.items()} for rank in built[name_of(case)]]
    assert [dict(megatron_layout(hf, place).shapes) for place in grid.places()] == expected


@pytest.mark.parametrize("case", GRIDS, ids=name_of)
def test_the_ranks_of_a_replica_hold_every_element(case):
    family, grid, overrides = case
    hf = config_of(family, **overrides)
    whole = indexed(file_layout(hf).shapes)
    for place in set(grid.places()):
        layout = megatron_layout(hf, place)
        for name, shape in layout.shapes.items():
            pieces = layout.by_parameter[name]
            covered = sum(piece.box.numel for piece in pieces)
            vocabulary = any("embed_tokens" in piece.box.name or "lm_head" in piece.box.name for piece in pieces)
            assert covered == shape_size(shape) or vocabulary or not pieces, name
        for piece in layout.pieces:
            whole[piece.box.name][piece.box.slices] = 0
    assert not any(tensor.any() for tensor in whole.values())


def shape_size(shape):
    size = 1
    for n in shape:
        size *= n
    return size


def test_te_names():
    dense = megatron_layout(CONFIGS["qwen3"], MegatronPlace(transformer_engine=True)).shapes
    assert "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight" in dense
    assert "decoder.layers.0.mlp.linear_fc1.layer_norm_weight" in dense
    place = MegatronPlace(ep=2, ep_rank=1, transformer_engine=True, grouped_experts=True)
    sparse = megatron_layout(CONFIGS["qwen3_moe"], place)
    assert "decoder.layers.0.pre_mlp_layernorm.weight" in sparse.shapes
    (gate, up) = sparse.by_parameter["decoder.layers.0.mlp.experts.linear_fc1.weight1"]
    assert gate.box.name == "model.layers.0.mlp.experts.3.gate_proj.weight"
    assert up.box.name == "model.layers.0.mlp.experts.3.up_proj.weight"
    latent = megatron_layout(CONFIGS["deepseek_v3"], MegatronPlace(tp=2, transformer_engine=True)).shapes
    assert latent["decoder.layers.0.self_attention.linear_q_down_proj.weight"] == (24, 32)
    assert "decoder.layers.0.self_attention.linear_kv_up_proj.layer_norm_weight" in latent


def test_a_critic_has_a_value_head_and_no_output_layer():
    last = megatron_layout(CONFIGS["llama"], MegatronPlace(pp=2, pp_rank=1), critic=True)
    assert last.shapes["value_head.weight"] == (1, 32)
    assert "output_layer.weight" not in last.shapes
    assert "lm_head.weight" not in file_layout(CONFIGS["llama"], critic=True).shapes


@pytest.mark.parametrize(
    ("family", "place", "message"),
    [
        (
            "llama",
            MegatronPlace(tp=3),
            r"tp=3 does not divide the model's num_attention_heads=8; tp can be 1, 2, 4 or 8",
        ),
        ("llama", MegatronPlace(pp=3), r"pp=3 does not divide the model's num_hidden_layers=4; pp can be 1, 2 or 4"),
        ("llama", MegatronPlace(pp=2, vpp=4), "vpp=4 does not divide .* vpp can be 1 or 2"),
        ("llama", MegatronPlace(pp=3, first_layers=3, last_layers=2), "makes stages of 3, -1, 2 layers"),
        ("llama", MegatronPlace(ep=2), "ep=2: the model has no experts"),
        ("qwen3_moe", MegatronPlace(ep=3), "ep=3 does not divide the model's number of experts=4; ep can be 1, 2 or 4"),
        ("qwen3_moe", MegatronPlace(etp=5), "etp=5 does not divide the model's experts' intermediate_size=24"),
        ("deepseek_v3", MegatronPlace(tp=16), "tp can be 1, 2, 4 or 8"),
    ],
)
def test_a_layout_that_does_not_divide_the_model_says_what_would(family, place, message):
    with pytest.raises(UserError, match=message):
        megatron_layout(CONFIGS[family], place)


def test_kv_heads_that_tp_neither_divides_nor_multiplies():
    hf = config_of("llama", hidden_size=48, num_attention_heads=12, num_key_value_heads=4)
    with pytest.raises(UserError, match=r"tp=6 .*num_key_value_heads=4.*tp can be 1, 2 or 4"):
        megatron_layout(hf, MegatronPlace(tp=6))


def test_an_unknown_family_is_told_how_to_come_in():
    class Unknown:
        model_type = "gpt2"

    with pytest.raises(UserError, match=r"gpt2 is not supported; supported are llama, .*docs/adding-a-model\.md"):
        megatron_layout(Unknown(), MegatronPlace())
