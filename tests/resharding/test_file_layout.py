"""transformers is the oracle: it reads and writes checkpoints, and says where their elements are in the live model."""

from pathlib import Path

import pytest
import torch
from resharding.families import CONFIGS, save_indexed
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from areal_mega.config.errors import UserError
from areal_mega.resharding.coordinates import Box
from areal_mega.resharding.known_models import KNOWN_MODELS, known_model
from areal_mega.resharding.layouts import FAMILIES, file_layout

PARAMETERS = {  # in billions, as on the models' pages
    "qwen2.5-1.5b": 1.54,
    "qwen2.5-7b": 7.61,
    "qwen2.5-14b": 14.8,
    "qwen2.5-32b": 32.8,
    "qwen2.5-72b": 72.7,
    "qwen2-7b-instruct": 7.62,
    "qwen2.5-7b-instruct": 7.62,
    "qwen2.5-32b-instruct": 32.8,
    "deepseek-r1-distill-qwen-1.5b": 1.78,
    "deepseek-r1-distill-qwen-7b": 7.62,
    "deepseek-r1-distill-qwen-14b": 14.8,
    "deepseek-r1-distill-qwen-32b": 32.8,
    "qwen3-14b": 14.8,
    "qwen3-30b-a3b": 30.5,
    "qwen3-235b-a22b": 235,
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.6,
    "mixtral-8x7b": 46.7,
    "deepseek-v3": 671,
}


def test_every_family_is_tested():
    assert set(CONFIGS) == set(FAMILIES)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {}) for family in CONFIGS),
        ("qwen3_moe", {"mlp_only_layers": [1]}),
        ("deepseek_v2", {"q_lora_rank": 16}),
    ],
)
def test_a_checkpoint_has_the_tensors_of_the_table(family, changes, tmp_path):
    tensors = save_indexed(tmp_path / "model", family, **changes)
    hf = AutoConfig.from_pretrained(tmp_path / "model")
    assert dict(file_layout(hf).shapes) == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    check_experts(model, tensors)


def check_experts(model, tensors):
    """The live model keeps all experts of a layer in two tensors: gate above up, and down."""
    for name, live in model.named_parameters():
        block, _, kind = name.partition(".experts.")
        if kind not in ("gate_up_proj", "down_proj"):
            continue
        mixtral = f"{block.replace('.mlp', '.block_sparse_moe')}.experts.0.w1.weight" in tensors
        gate, up, down = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        prefix = block.replace(".mlp", ".block_sparse_moe") if mixtral else block
        for number, expert in enumerate(live.detach()):
            parts = (gate, up) if kind == "gate_up_proj" else (down,)
            expected = torch.cat([tensors[f"{prefix}.experts.{number}.{part}.weight"] for part in parts])
            assert torch.equal(expert, expected)


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_a_known_model_has_its_number_of_parameters(name):
    assert file_layout(known_model(name)).numel / 1e9 == pytest.approx(PARAMETERS[name], rel=0.005)


def test_a_config_without_a_number_is_named():
    dense = known_model("llama-3.1-8b")
    del dense.hidden_size
    with pytest.raises(UserError, match=r"config\.json of a llama model needs the number hidden_size; it is None"):
        file_layout(dense)
    latent = known_model("deepseek-v3")
    del latent.kv_lora_rank
    with pytest.raises(UserError, match="kv_lora_rank"):
        file_layout(latent)


def test_the_guide_to_new_families_exists():
    assert (Path(__file__).parents[2] / "docs" / "adding-a-model.md").is_file()


def test_a_box_without_another():
    whole, hole = Box("t", (0, 0), (4, 5)), Box("t", (1, 2), (3, 9))
    rest = list(whole.without(hole))
    covered = torch.zeros(4, 5)
    for box in rest:
        covered[box.slices] += 1
    expected = torch.ones(4, 5)
    expected[1:3, 2:] = 0
    assert torch.equal(covered, expected)
    assert list(whole.without(Box("u", (0, 0), (4, 5)))) == [whole]
