"""Broken Hugging Face folders are found before anything is trained; file and tensor are named."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from areal_mega.config.errors import UserError
from areal_mega.policy.checkpoint_files import INDEX, HFWeights, write_folder
from areal_mega.policy.safetensors_header import read_header


@pytest.fixture
def folder(tmp_path):
    """Two files and an index."""
    save_file({"a": torch.ones(4, 4), "b": torch.ones(8)}, tmp_path / "1.safetensors")
    save_file({"c": torch.ones(2, 2, dtype=torch.bfloat16)}, tmp_path / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}
    (tmp_path / INDEX).write_text(json.dumps(index))
    return tmp_path


def test_a_whole_folder(folder):
    files = HFWeights(folder)
    assert sorted(files.names()) == ["a", "b", "c"]
    assert (files.entry("c").dtype, files.entry("c").shape) == ("BF16", (2, 2))
    files.check_all_used({"a", "b", "c"})


def edit_index(folder, **changes):
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= {k: v for k, v in changes.items() if v}
    for name in [k for k, v in changes.items() if not v]:
        del index["weight_map"][name]
    (folder / INDEX).write_text(json.dumps(index))


def cut(folder, keep):
    path = folder / "1.safetensors"
    path.write_bytes(path.read_bytes()[:keep])


def edit_header(folder, old, new):
    path = folder / "1.safetensors"
    content = path.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "2.safetensors").unlink(), r"2\.safetensors does not exist"),
        (lambda f: (f / INDEX).write_text("[]"), "is not an index of safetensors files"),
        (lambda f: edit_index(f, d="1.safetensors"), r"1\.safetensors does not hold d, which .*index.json says"),
        (lambda f: edit_index(f, b="2.safetensors"), r"2\.safetensors does not hold b"),
        (lambda f: edit_index(f, b=None), r"1\.safetensors: tensor b is not listed in"),
        (
            lambda f: save_file({"a": torch.ones(1)}, f / "2.safetensors"),
            r"2\.safetensors: tensor a is in 1\.safetensors",
        ),
        (
            lambda f: cut(f, -1),
            r"1\.safetensors is not a whole safetensors file: tensor b ends at byte \d+, but the file",
        ),
        (lambda f: cut(f, 100), "it ends inside of its header"),
        (lambda f: cut(f, 4), "it ends inside of its header"),
        (lambda f: edit_header(f, b'"F32","shape":[8]', b'"I32","shape":[8]'), r"tensor b has type I32, but .* F32"),
        (lambda f: edit_header(f, b'"shape":[8]', b'"shape":[9]'), r"damaged: tensor b of shape \(9,\) does not fill"),
        (lambda f: edit_header(f, b'"data_offsets":[0,64]', b'"data_offsets":[4,68]'), "starts at byte 4 .* not at 0"),
        (lambda f: edit_header(f, b'{"a"', b'{"a\xff'), "its header is damaged"),
    ],
)
def test_a_broken_folder_is_explained(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        HFWeights(folder)


def test_bytes_of_no_tensor(folder):
    with (folder / "1.safetensors").open("ab") as file:
        file.write(b"rest")
    with pytest.raises(UserError, match="has 4 bytes that belong to no tensor"):
        read_header(folder / "1.safetensors")


def test_tensors_that_the_model_has_no_place_for(folder):
    with pytest.raises(UserError, match=r"1\.safetensors: tensor a and 1 more has no place in the model"):
        HFWeights(folder).check_all_used({"c"})
    save_file({"lm_head.weight": torch.ones(2), "x.rotary_emb.inv_freq": torch.ones(2)}, folder / "1.safetensors")
    edit_index(folder, a=None, b=None, **{"lm_head.weight": "1.safetensors", "x.rotary_emb.inv_freq": "1.safetensors"})
    HFWeights(folder).check_all_used({"c"})


def test_several_ranks_write_one_folder(tmp_path):
    """Each its own tensors, here one after the other: the last to arrive has heard of all."""
    from threading import Barrier, Thread

    from transformers import LlamaConfig

    barrier, values = Barrier(3), {}

    def gather(rank):
        def gather(value):
            barrier.wait()
            values[rank] = value
            barrier.wait()
            return [values[r] for r in range(3)]

        return gather

    def write(rank):
        tensors = [(f"t{rank}.{i}", torch.full((8,), float(10 * rank + i))) for i in range(2 * rank)]
        write_folder(tmp_path / "m", LlamaConfig(), tensors, tmp_path, shard_bytes=64, rank=rank, gather=gather(rank))

    threads = [Thread(target=write, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]  # rank 0 had none
    found = {}
    for file in files:
        found |= load_file(tmp_path / "m" / file)
    assert {name: float(tensor[0]) for name, tensor in found.items()} == {
        "t1.0": 10, "t1.1": 11, "t2.0": 20, "t2.1": 21, "t2.2": 22, "t2.3": 23,
    }  # fmt: skip
    assert sorted(HFWeights(tmp_path / "m").names()) == sorted(found)
