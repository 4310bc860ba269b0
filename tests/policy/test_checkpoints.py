"""Training checkpoints on one rank; tests/distributed/test_resume.py has the layouts."""

import json
import shutil

import pytest
import torch
from models import save_tiny_model
from safetensors.torch import load_file, save_file
from torch.optim import AdamW

from areal_mega.config.errors import UserError
from areal_mega.config.options import OptimizerOptions, PolicyOptions, SFTOptions
from areal_mega.data.packed import PackedBatch
from areal_mega.policy import checkpoints
from areal_mega.policy import model as model_module
from areal_mega.policy.checkpoints import CheckpointWriter
from areal_mega.policy.fingerprint import fingerprint
from areal_mega.policy.model import MegatronModel
from areal_mega.policy.optimizer import data_parallel
from areal_mega.runtime.checkpoint_folders import CheckpointFolders
from areal_mega.trainers.recovery import Recovery

OPTIMIZER = OptimizerOptions(lr=1e-2, schedule="linear", min_lr_ratio=0.1, warmup_steps=2, weight_decay=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "qwen3"
    save_tiny_model(folder, "qwen3")
    return folder


@pytest.fixture
def build(topology, folder):
    def build(optimizer=OPTIMIZER, dtype="float32", path=folder, head="logprob", **more):
        return MegatronModel(
            topology, str(path), PolicyOptions(), dtype=dtype, optimizer=optimizer, head=head, total_steps=8, seed=1,
            **more,
        )  # fmt: skip

    return build


def train(model, steps):
    """Losses of the given steps; each has its own batch."""
    losses = []
    for step in steps:
        tokens = torch.randint(0, 131, (40,), generator=torch.Generator().manual_seed(step))
        batch = PackedBatch.pack([{"tokens": tokens, "loss_mask": torch.arange(40) > 0}])
        losses.append(model.train_step(batch, lambda b, out: (-out["logprobs"].sum() / 39, {}))["loss"])
    return losses


def save(topology, run, model, step=3, progress=None):
    writer = CheckpointWriter(topology, CheckpointFolders(run), keep=2)
    writer.save(step, {"policy": model}, {"progress": progress or {}})
    writer.finish()
    return CheckpointFolders(run).path(step)


def moments(model):
    """The optimizer's state, by parameter."""
    (part,) = model.optimizer.chained_optimizers
    assert isinstance(part.optimizer, AdamW)
    return [part.optimizer.state[p] for group in part.optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_goes_on_with_the_same_losses(topology, build, tmp_path, dtype):
    model = build(dtype=dtype)
    train(model, range(3))
    point = save(topology, tmp_path, model)
    went_on = train(model, range(3, 6))
    again = build(dtype=dtype, load_weights=False)
    checkpoints.load(point, {"policy": again}, topology)
    assert train(again, range(3, 6)) == went_on
    assert again.schedule.num_steps == 6


def test_every_parameter_counts_its_own_steps(topology, build, tmp_path):
    model = build()
    train(model, range(3))
    again = build()
    checkpoints.load(save(topology, tmp_path, model), {"policy": again}, topology)
    train(again, range(3, 5))
    steps = [float(state["step"]) for state in moments(again)]
    assert steps == [5.0] * len(steps) and len(steps) > 30


def test_a_model_that_has_not_trained_yet_can_be_saved(topology, build, tmp_path):
    """As the policy's is while the critic warms up."""
    again = build()
    checkpoints.load(save(topology, tmp_path, build(), step=0), {"policy": again}, topology)
    assert train(again, range(3)) == train(build(), range(3))


def test_padding_between_buckets_shifts_nothing(topology, build, tmp_path, monkeypatch):
    """The embedding that stages share gets a bucket of its own, and so does here the last norm: of 32 elements."""

    def with_own_bucket(chunks, options):
        chunks[-1].decoder.final_layernorm.weight.shared_embedding = True
        return data_parallel(chunks, options)

    with monkeypatch.context() as patch:
        patch.setattr(model_module, "data_parallel", with_own_bucket)
        model = build()
    assert len(model.ddp[0].buffers[0].buckets) == 2
    train(model, range(3))
    point = save(topology, tmp_path, model)
    again = build()
    checkpoints.load(point, {"policy": again}, topology)
    assert train(again, range(3, 6)) == pytest.approx(train(model, range(3, 6)), rel=1e-6)


def test_a_checkpoint_is_of_its_moment_while_training_goes_on(topology, build, tmp_path):
    model = build()
    train(model, range(3))
    folders = CheckpointFolders(tmp_path)
    writer = CheckpointWriter(topology, folders, keep=1)
    before = {name: tensor.clone() for name, tensor in model.export()}
    writer.save(3, {"policy": model}, {})
    assert folders.all() == []  # nobody sees what is not whole
    train(model, range(3, 8))
    writer.finish()
    again = build()
    checkpoints.load(folders.path(3), {"policy": again}, topology)
    assert all(torch.equal(tensor, before[name]) for name, tensor in again.export())


def test_the_options_of_now_hold(topology, build, tmp_path):
    model = build()
    train(model, range(3))
    point = save(topology, tmp_path, model)
    again = build(optimizer=OptimizerOptions(lr=5e-4, weight_decay=0.2))
    checkpoints.load(point, {"policy": again}, topology)
    groups = again.optimizer.param_groups
    assert {g["lr"] for g in groups} == {5e-4} and {g["weight_decay"] for g in groups} == {0.0, 0.2}
    assert again.schedule.num_steps == 3


def test_random_generators_go_on(topology, build, tmp_path):
    point = save(topology, tmp_path, build(optimizer=None))
    expected = torch.rand(4)
    torch.manual_seed(7)
    checkpoints.load(point, {"policy": build(optimizer=None)}, topology)
    assert torch.equal(torch.rand(4), expected)


def test_old_checkpoints_go_and_latest_links_to_the_newest(topology, build, tmp_path):
    model = build(optimizer=None)
    for step in (1, 2, 3):
        save(topology, tmp_path, model, step)
    folders = CheckpointFolders(tmp_path)
    assert [path.name for path in folders.all()] == ["step-00000002", "step-00000003"]
    assert (folders.root / "latest").resolve() == folders.path(3)
    (folders.root / ".step-00000004.dead").mkdir()  # of a killed run
    save(topology, tmp_path, model, 4)
    assert sorted(p.name for p in folders.root.iterdir()) == ["latest", "step-00000003", "step-00000004"]


def test_a_checkpoint_that_cannot_be_written_stops_the_run(topology, build, tmp_path):
    folders = CheckpointFolders(tmp_path)
    save(topology, tmp_path, build(optimizer=None), 1)
    writer = CheckpointWriter(topology, folders, keep=2)
    prepare = writer._prepare

    def something_in_the_way(*arguments):
        partial = prepare(*arguments)
        (partial / "state" / "__0_0.distcp").mkdir()
        return partial

    writer._prepare = something_in_the_way
    writer.save(2, {"policy": build(optimizer=None)}, {})
    with pytest.raises(RuntimeError, match=r"A checkpoint in .*checkpoints could not be written"):
        writer.finish()
    assert [path.name for path in folders.all()] == ["step-00000001"]


# ---- what cannot be resumed from -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(topology, folder, tmp_path_factory):
    """A run with checkpoints of steps 2 and 4."""
    run = tmp_path_factory.mktemp("run")
    model = MegatronModel(
        topology, str(folder), PolicyOptions(), dtype="float32", optimizer=None, head="logprob", seed=1
    )
    writer = CheckpointWriter(topology, CheckpointFolders(run), keep=2)
    weights = {"the policy's first weights": [str(folder), fingerprint(folder)]}
    identity = {"program": "sft", "seed": 1, "model.dtype": "float32", "data.shuffle": True, **weights}
    for step in (2, 4):
        writer.save(step, {"policy": model}, {"identity": identity, "progress": {"position": 10 * step}})
    writer.finish()
    return run


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run", symlinks=True)


def recover(topology, folder, run, models=None, **changes):
    options = SFTOptions(experiment="e", steps=8, resume=str(run))
    options.model.path, options.data.train = str(folder), "none.jsonl"
    for name, value in changes.items():
        owner, _, last = name.rpartition("__")
        setattr(getattr(options, owner) if owner else options, last, value)
    return Recovery(options, topology, run, models or {"policy": str(folder)})


def shard(run, step=4):
    return max((run / "checkpoints" / f"step-0000000{step}" / "state").glob("*.distcp"), key=lambda f: f.stat().st_size)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_checkpoint_is_resumed_from(topology, folder, run):
    recovery = recover(topology, folder, run)
    assert (recovery.step, recovery.progress) == (4, {"position": 40})
    earlier = recover(topology, folder, run, resume=str(run / "checkpoints" / "step-00000002"))
    assert (earlier.step, earlier.progress) == (2, {"position": 20})
    # What is begun from step 2 must not be mixed up with step 4, should it be killed.
    assert CheckpointFolders(run).latest() == run / "checkpoints" / "step-00000002"


@pytest.mark.parametrize(
    ("damage", "words"),
    [(truncate, "is truncated: it has"), (flip_a_bit, "was changed"), (lambda path: path.unlink(), "is missing")],
)
def test_a_damaged_shard_is_found_and_named(topology, folder, run, damage, words):
    damage(shard(run))
    with pytest.raises(UserError, match=f"{shard(run, 2).name} {words}") as error:
        recover(topology, folder, run)
    assert "checkpoint.skip_damaged=true to go on from" in str(error.value) and "step-00000002" in str(error.value)
    assert recover(topology, folder, run, checkpoint__skip_damaged=True).step == 2


def test_a_checkpoint_without_manifest_is_not_whole(topology, folder, run):
    for step in (2, 4):
        (run / "checkpoints" / f"step-0000000{step}" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"(?s)step-00000004 has no manifest\.json.*skip_damaged"):
        recover(topology, folder, run)
    with pytest.raises(UserError, match="No checkpoint of this run is whole"):
        recover(topology, folder, run, checkpoint__skip_damaged=True)


def test_another_model_is_refused(topology, run, tmp_path):
    other = tmp_path / "other"
    save_tiny_model(other, "qwen3", intermediate_size=64)
    with pytest.raises(
        UserError, match=r"another model than .*other, which has intermediate_size=64 in the place of 48"
    ):
        recover(topology, other, run)


def test_other_weights_of_the_same_shape_are_refused(topology, folder, run, tmp_path):
    """As the reference model they would change what the run learns, without a word."""
    moved, other = tmp_path / "moved", tmp_path / "other"
    shutil.copytree(folder, moved)
    assert recover(topology, moved, run).step == 4
    shutil.copytree(folder, other)
    tensors = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.001 for name, tensor in tensors.items()}, other / "model.safetensors")
    with pytest.raises(UserError, match=r"the policy's first weights=.*other \(sha256 .*made with .* \(sha256 "):
        recover(topology, other, run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2}, "seed=2, but the checkpoint was made with seed=1"),
        ({"model__dtype": "bfloat16"}, "model.dtype=bfloat16, but the checkpoint was made with model.dtype=float32"),
        ({"steps": 3}, "steps=3, but the checkpoint is of step 4; raise steps"),
        ({"models": {"critic": "."}}, "it has no critic, only policy"),
    ],
)
def test_another_run_is_refused(topology, folder, run, changes, message):
    with pytest.raises(UserError, match=message):
        recover(topology, folder, run, **changes)


def test_other_data_are_refused(topology, folder, run, tmp_path):
    trainer = run / "checkpoints" / "step-00000004" / "trainer.json"
    content = json.loads(trainer.read_text())
    content["identity"]["data.train"] = ["old.jsonl", "0" * 64]
    trainer.write_text(json.dumps(content))
    CheckpointFolders(run).path(4).joinpath("manifest.json").unlink()
    from areal_mega.runtime import manifest

    manifest.write(CheckpointFolders(run).path(4), {})
    data = tmp_path / "new.jsonl"
    data.write_text("{}\n")
    with pytest.raises(UserError, match=r"data.train=.*new.jsonl .*, but .* data.train=old.jsonl \(sha256 00000000\)"):
        recover(topology, folder, run, data__train=str(data))
