"""A 135M-parameter model on 4 ranks: nobody reads, gathers or writes the whole of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

WORKER = Path(__file__).with_name("folder_worker.py")
LARGEST = 49152 * 576 * 4  # the embedding
SHARD_BYTES = 32 << 20


@pytest.mark.distributed
@pytest.mark.slow
def test_each_rank_reads_and_writes_its_share(tmp_path):
    source = tmp_path / "model"
    size = make_model(source)
    assert 130e6 < size / 4 < 140e6
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    run = subprocess.run(
        [*launch, str(WORKER), str(tmp_path / "figures.json"), str(source), str(SHARD_BYTES)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=580,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-6000:]
    found = json.loads((tmp_path / "figures.json").read_text())
    print(json.dumps({"file": size, **found}, indent=1))
    for rank in found["ranks"]:
        # Every byte once: the slices are different ones and fill the rank's parameters exactly.
        assert rank["slices"] == rank["different slices"]
        assert rank["asked for"] == rank["parameters"] < 0.35 * size
        # Through the memory map. The kernel counts pages: slices along rows share theirs with the other TP rank's.
        assert rank["read by calls"] < 0.02 * size
        assert rank["asked for"] * 0.9 < rank["touched"] < 0.5 * size
        # A file and a tensor: its own part, the gathered parts and what they make. Not the model.
        assert rank["save, memory above"] < 2.6 * LARGEST + SHARD_BYTES
    assert found["differences"] == []
    files = list((tmp_path / "saved").glob("*.safetensors"))
    assert len(files) > 8
    assert len(AutoModelForCausalLM.from_pretrained(tmp_path / "saved").model.layers) == 30


def make_model(folder: Path) -> int:
    """SmolLM2's sizes with heads that two ranks can share; every element differs from its neighbours. Its bytes."""
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=12,
        num_key_value_heads=4, head_dim=48, tie_word_embeddings=True, dtype="float32",
    )  # fmt: skip
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    folder.mkdir()
    config.save_pretrained(folder)
    tensors = {
        name: ((torch.arange(shape.numel()) + 31 * i) % 1009).float().view(shape)
        for i, (name, shape) in enumerate(shapes.items())
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(tensor.nbytes for tensor in tensors.values())
