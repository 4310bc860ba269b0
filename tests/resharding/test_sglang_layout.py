"""SGLang's own load_weights is the oracle: it says where every element of the checkpoint ends up on every rank."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from resharding.families import CONFIGS, save_indexed
from transformers import AutoConfig

from areal_mega.resharding.layouts import SGLangPlace, sglang_layout

WORKER = Path(__file__).with_name("sglang_worker.py")
# family, tp, ep, whether shared experts are fused: TP above the two KV heads, EP and experts' TP together, vocabularies
# that 64 does and does not divide.
ENGINES = [
    *((family, tp, 1, False) for family in CONFIGS for tp in (1, 2, 4)),
    *((family, 4, ep, False) for family in ("qwen3_moe", "mixtral", "deepseek_v2", "deepseek_v3") for ep in (2, 4)),
    ("deepseek_v3", 2, 1, True),
    ("deepseek_v3", 4, 2, True),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("indexed")
    return {family: (root / family, save_indexed(root / family, family)) for family in CONFIGS}


@pytest.fixture(scope="module")
def loaded(folders, tmp_path_factory):
    """Where SGLang's parameters of every engine are; all engines in one process, since its imports take long."""
    out = tmp_path_factory.mktemp("loaded")
    jobs = [(str(folders[e[0]][0]), *e[1:], str(out / str(i))) for i, e in enumerate(ENGINES)]
    run = subprocess.run([sys.executable, str(WORKER), json.dumps(jobs)], capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-6000:]
    return {engine: out / str(i) for i, engine in enumerate(ENGINES)}


@pytest.mark.engine
@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: f"{e[0]}-tp{e[1]}-ep{e[2]}{'-fused' if e[3] else ''}")
def test_the_table_puts_every_element_where_sglang_puts_it(engine, folders, loaded):
    family, tp, ep, fused = engine
    folder, tensors = folders[family]
    hf = AutoConfig.from_pretrained(folder)
    for rank in range(tp):
        found = torch.load(loaded[engine] / f"{rank}.pt")
        layout = sglang_layout(hf, SGLangPlace(tp, rank, ep, fused))
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == dict(layout.shapes)
        for name, tensor in found.items():
            expected = torch.zeros_like(tensor)
            for piece in layout.by_parameter[name]:
                piece.view(expected).copy_(tensors[piece.box.name][piece.box.slices])
            assert torch.equal(tensor, expected), (name, rank)
