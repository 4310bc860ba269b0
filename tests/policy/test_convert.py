import pytest
import torch
from models import save_tiny_model
from transformers import AutoModelForCausalLM

from areal_mega.config.errors import UserError
from areal_mega.config.options import OptimizerOptions, PolicyOptions
from areal_mega.data.packed import PackedBatch
from areal_mega.policy import checkpoints, convert
from areal_mega.policy.checkpoint_files import HFWeights
from areal_mega.policy.checkpoints import CheckpointWriter
from areal_mega.policy.model import MegatronModel
from areal_mega.runtime.checkpoint_folders import CheckpointFolders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "qwen3"
    save_tiny_model(folder, "qwen3")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_there_and_back(topology, folder, tmp_path):
    point = convert.to_training(folder, tmp_path / "run", topology, model="policy")
    assert convert.checkpoint_at(tmp_path / "run") == convert.checkpoint_at(point) == point
    convert.to_hugging_face(tmp_path / "run", tmp_path / "back", topology)
    for place in (point, tmp_path / "back"):
        assert list(convert.differences(folder, place, topology)) == []
    assert (tmp_path / "back" / "tokenizer.json").exists()
    ours, theirs = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (tmp_path / "back", folder))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_trained_model_leaves_its_optimizer_behind(topology, folder, tmp_path):
    model = MegatronModel(
        topology, str(folder), PolicyOptions(), dtype="bfloat16", optimizer=OptimizerOptions(), head="logprob", seed=1
    )
    writer = CheckpointWriter(topology, CheckpointFolders(tmp_path / "run"), keep=1)
    writer.save(5, {"policy": model}, {})
    writer.finish()
    convert.to_hugging_face(tmp_path / "run", tmp_path / "hf", topology)
    assert list(convert.differences(folder, tmp_path / "hf", topology)) == []
    assert list(convert.differences(tmp_path / "run", tmp_path / "hf", topology)) == []


def test_a_converted_checkpoint_begins_with_a_new_optimizer(topology, folder, tmp_path):
    """Also where a bfloat16 model has main weights in float32."""
    point = convert.to_training(folder, tmp_path / "run", topology, model="policy", dtype="bfloat16")
    batch = PackedBatch.pack([{"tokens": list(range(20)), "loss_mask": [t > 0 for t in range(20)]}])
    losses = []
    for load_weights in (True, False):
        model = MegatronModel(
            topology, str(folder), PolicyOptions(), dtype="bfloat16", optimizer=OptimizerOptions(lr=1e-2),
            head="logprob", seed=1, load_weights=load_weights,
        )  # fmt: skip
        if not load_weights:
            checkpoints.load(point, {"policy": model}, topology)
        steps = [model.train_step(batch, lambda mb, out: (-out["logprobs"].sum() / 19, {})) for _ in range(3)]
        losses.append([step["loss"] for step in steps])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_type_and_size_of_files_change(topology, folder, tmp_path, dtype):
    point = convert.to_training(folder, tmp_path / "run", topology, model="policy")
    for number, source in enumerate((folder, point)):
        target = tmp_path / f"{dtype}-{number}"
        convert.to_hugging_face(source, target, topology, dtype=dtype, shard_bytes=10_000)
        assert len(list(target.glob("model-*.safetensors"))) > 3
        loaded = AutoModelForCausalLM.from_pretrained(target)
        assert loaded.dtype == getattr(torch, dtype)
        assert list(convert.differences(folder, target, topology)) == []
        # The other way round it is the rounding that differs.
        assert any("elements differ, by" in line for line in convert.differences(target, folder, topology))


def test_differences_are_named(topology, folder, tmp_path):
    save_tiny_model(tmp_path / "other", "qwen3", intermediate_size=64)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight[3] += 0.5
    model.save_pretrained(tmp_path / "changed")
    found = list(convert.differences(folder, tmp_path / "changed", topology))
    assert found == ["model.norm.weight: 1 of 32 elements differ, by 0.5 at most"]
    found = list(convert.differences(folder, tmp_path / "other", topology))
    assert "model.layers.0.mlp.up_proj.weight: shape (48, 32) and (64, 32)" in found


def test_a_damaged_checkpoint_is_not_converted(topology, folder, tmp_path):
    point = convert.to_training(folder, tmp_path / "run", topology, model="policy")
    shard = max((point / "state").glob("*.distcp"), key=lambda file: file.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{shard.name} is truncated"):
        convert.to_hugging_face(point, tmp_path / "back", topology)


def test_a_model_that_the_checkpoint_does_not_have(topology, folder, tmp_path):
    convert.to_training(folder, tmp_path / "run", topology, model="critic")
    with pytest.raises(UserError, match="has no policy; it holds critic"):
        convert.to_hugging_face(tmp_path / "run", tmp_path / "back", topology)
    convert.to_hugging_face(tmp_path / "run", tmp_path / "back", topology, model="critic")
    assert "score.weight" in HFWeights(tmp_path / "back")
