import json
import shutil

import pytest
import torch
from models import save_tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from areal_mega.config.errors import UserError
from areal_mega.config.options import OptimizerOptions, ParallelOptions, PolicyOptions, RecomputeOptions
from areal_mega.data.packed import PackedBatch
from areal_mega.policy.checkpoint_files import INDEX, write_folder
from areal_mega.policy.model import MegatronModel


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "qwen3"
    save_tiny_model(folder, "qwen3")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def build(topology, folder, optimizer=None, head="logprob", dtype="float32", **options):
    return MegatronModel(
        topology, str(folder), PolicyOptions(**options), dtype=dtype, optimizer=optimizer, head=head, seed=1
    )


def batch_of(*lengths, mask_first=False):
    rows = [{"tokens": list(range(n)), "loss_mask": [t > 0 or mask_first for t in range(n)]} for n in lengths]
    return PackedBatch.pack(rows)


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def no_config(folder):
    (folder / "config.json").unlink()


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def missing_tensor(folder):
    edit_weights(folder, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))


def misshapen_tensor(folder):
    edit_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))


def misshapen_column_tensor(folder):
    name = "model.layers.0.self_attn.o_proj.weight"
    edit_weights(folder, lambda tensors: tensors.update({name: torch.ones(32, 40)}))


def other_family(folder):
    edit_config(folder, model_type="gpt2")


def sliding_window(folder):
    edit_config(folder, layer_types=["full_attention"] * 3 + ["sliding_attention"])


def other_rope(folder):
    edit_config(folder, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0})


def other_activation(folder):
    edit_config(folder, hidden_act="gelu")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_config, r"config\.json does not exist"),
        (no_weights, r"model\.safetensors does not exist"),
        (truncated, r"model\.safetensors is not a whole safetensors file"),
        (missing_tensor, r"no tensor model\.layers\.2\.mlp\.up_proj\.weight"),
        (misshapen_tensor, r"model\.norm\.weight has shape \(31,\).*implies \(32,\)"),
        (misshapen_column_tensor, r"o_proj\.weight has shape \(32, 40\).*implies \(32, 32\)"),
        (other_family, "gpt2 is not supported; supported are qwen3, qwen2, llama, qwen3_moe"),
        (sliding_window, "sliding-window attention is not supported"),
        (other_rope, "RoPE scaling yarn is supported for DeepSeek models only"),
        (other_activation, "hidden_act gelu is not supported"),
    ],
)
def test_a_model_that_cannot_be_used_is_explained(topology, folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        build(topology, folder)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"tensor": 3}, r"policy\.parallel\.tensor=3 .* num_attention_heads=4 is not a multiple of 3.*use 1, 2, 4"),
        ({"pipeline": 3}, r"policy\.parallel\.pipeline=3 .* num_hidden_layers=4 is not a multiple of 3.*use 1, 2, 4"),
        ({"expert": 2}, r"policy\.parallel\.expert=2 .* no experts.*use 1$"),
    ],
)
def test_a_layout_that_does_not_divide_the_model(topology, folder, layout, message):
    from areal_mega.policy.spec import read_config, transformer_config

    with pytest.raises(UserError, match=message):
        transformer_config(read_config(folder), PolicyOptions(), ParallelOptions(**layout), torch.float32)


def test_a_field_that_megatron_refuses(topology, folder):
    with pytest.raises(UserError, match=r"Megatron refuses policy\.megatron.*cpu_offloading"):
        build(topology, folder, megatron={"cpu_offloading": True, "cpu_offloading_num_layers": 9})


def test_recompute_that_needs_transformer_engine(topology, folder):
    with pytest.raises(UserError, match="names layernorm, which .* TransformerEngine only; install it, or leave"):
        build(topology, folder, recompute=RecomputeOptions(mode="selective", modules=["core_attn", "layernorm"]))


def test_fields_reach_megatron(topology, folder):
    model = build(topology, folder, megatron={"deterministic_mode": True})
    assert model.chunks[0].config.deterministic_mode


def test_first_tokens_cannot_be_in_the_loss(topology, folder):
    with pytest.raises(ValueError, match="first token"):
        build(topology, folder).forward(batch_of(4, 3, mask_first=True))


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 2.0,
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_scaled_rope(topology, tmp_path, rope):
    hf = save_tiny_model(tmp_path, "llama", rope_parameters=rope)
    batch = batch_of(120)
    with torch.no_grad():
        logits = hf(batch.tokens[None]).logits[0, :-1].log_softmax(-1)
    expected = logits.gather(1, batch.tokens[1:, None]).squeeze(1)
    got = build(topology, tmp_path).forward(batch)["logprobs"][1:]
    torch.testing.assert_close(got, expected, rtol=0, atol=3e-6)


def test_yarn_with_latent_attention(topology, tmp_path):
    """DeepSeek scales the softmax as well."""
    rope = {
        "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
        "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.5,
    }  # fmt: skip
    hf = save_tiny_model(tmp_path, "deepseek_v3", rope_parameters=rope)
    batch = batch_of(120)
    with torch.no_grad():
        logits = hf(batch.tokens[None]).logits[0, :-1].log_softmax(-1)
    expected = logits.gather(1, batch.tokens[1:, None]).squeeze(1)
    got = build(topology, tmp_path).forward(batch)["logprobs"][1:]
    torch.testing.assert_close(got, expected, rtol=0, atol=3e-6)


def test_bfloat16_trains_close_to_float32(topology, folder):
    batch = batch_of(40, 17, 30)
    steps = {}
    for dtype in ("float32", "bfloat16"):
        model = build(topology, folder, OptimizerOptions(lr=1e-3), dtype=dtype)
        steps[dtype] = model.train_step(batch, lambda mb, out: (-out["logprobs"].sum() / 84, {}))
        assert {tensor.dtype for _, tensor in model.export()} == {getattr(torch, dtype)}
    for name in ("loss", "grad_norm"):
        assert steps["bfloat16"][name] == pytest.approx(steps["float32"][name], rel=0.03)


def test_a_batch_without_loss_tokens_moves_nothing(topology, folder):
    model = build(topology, folder, OptimizerOptions(lr=1e-3))
    before = {name: tensor.clone() for name, tensor in model.export()}
    batch = batch_of(5, 6)
    batch = batch.with_fields(loss_mask=torch.zeros(11, dtype=torch.bool))
    stats = model.train_step(batch, lambda mb, out: (out["logprobs"].sum(), {}))
    assert stats["loss"] == stats["grad_norm"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.export())


def test_a_gradient_that_is_not_a_number_stops_the_run(topology, folder):
    model = build(topology, folder, OptimizerOptions(lr=1e-3))
    with pytest.raises(RuntimeError, match="found NaN in local grad norm"):
        model.train_step(batch_of(5, 6), lambda mb, out: (out["logprobs"].sum() * float("nan"), {}))


def test_saving_replaces_the_folder_and_keeps_the_tokenizer(topology, folder, tmp_path):
    (folder / "tokenizer.json").write_text("{}")
    target = tmp_path / "saved"
    target.mkdir()
    (target / "stale.txt").write_text("from an older run")
    build(topology, folder).save(target)
    assert {file.name for file in target.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not (target / "stale.txt").exists()
    assert not list(tmp_path.glob(".saved*"))


def test_a_model_in_several_files(topology, folder, tmp_path):
    model = build(topology, folder)
    target = tmp_path / "shards"
    write_folder(target, model.hf, model.export(), folder, shard_bytes=20_000)
    files = set(json.loads((target / INDEX).read_text())["weight_map"].values())
    assert len(files) > 2
    assert files == {file.name for file in target.glob("*.safetensors")}
    original = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    for loaded in (
        dict(AutoModelForCausalLM.from_pretrained(target).named_parameters()),
        dict(build(topology, target).export()),
    ):
        assert all(torch.equal(loaded[name], tensor) for name, tensor in original.items())
