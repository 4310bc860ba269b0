"""tools/plan.py as a user calls it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from resharding.families import config_of

TOOL = Path(__file__).parents[2] / "tools" / "plan.py"


def run(*arguments):
    command = [sys.executable, str(TOOL), "reshard", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def figures(tmp_path, *arguments):
    out = tmp_path / "plan.json"
    done = run(*arguments, "--json", out)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done


def test_a_large_mixture_is_planned_in_seconds(tmp_path):
    found, done = figures(
        tmp_path,
        *("--model", "qwen3-235b-a22b", "--source", "megatron:tp=4,pp=4,ep=32,dp=32"),
        *("--target", "sglang:tp=8,ep=8,count=64"),
    )
    assert found["source_ranks"] == found["target_ranks"] == 512
    assert found["bytes_moved"] == found["lower_bound"] == found["bytes_needed"]
    assert found["bytes_moved"] < found["full_gather_bytes"]
    assert found["max_in"] < 1.02 * found["bytes_moved"] / 512
    assert found["max_out"] < 1.03 * found["bytes_moved"] / 512  # the first and the last stage have more than the rest
    assert found["seconds_to_plan"] < 10
    assert "first_layers=23,last_layers=23" in done.stderr
    assert "1.000" in done.stdout


def test_colocated_ranks_keep_what_they_have(tmp_path):
    arguments = ("--model", "qwen2.5-72b", "--source", "megatron:tp=8,pp=4", "--target", "sglang:tp=8,count=4")
    found, _ = figures(tmp_path, *arguments, "--colocated")
    assert found["local_fraction"] == pytest.approx(0.25, abs=0.001)
    assert found["bytes_moved"] == found["lower_bound"] < found["bytes_needed"]
    assert found["messages"] == 96
    chunked, _ = figures(tmp_path, *arguments, "--colocated", "--chunk-mb", 1024)
    assert chunked["messages"] > found["messages"]
    assert chunked["bytes_moved"] == found["bytes_moved"]


def test_a_folder_is_planned_by_its_config(tmp_path):
    config_of("deepseek_v3").save_pretrained(tmp_path)
    source = "megatron:tp=2,ep=2,dp=2"
    found, _ = figures(tmp_path, "--model", tmp_path, "--source", source, "--target", "sglang:tp=4,ep=4")
    assert found["bytes_moved"] == found["lower_bound"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("gpt-5", "megatron:tp=1", "sglang:tp=1"),
            "gpt-5 is neither a folder nor a known model; known are qwen2.5-1.5b",
        ),
        (("llama-3.1-8b", "vllm:tp=1", "sglang:tp=1"), "--source=vllm:tp=1: expected megatron or sglang"),
        (("llama-3.1-8b", "megatron:tp=1", "sglang:pp=2"), "sglang has no pp; it has tp, ep, count"),
        (("llama-3.1-8b", "megatron:tp=two", "sglang:tp=1"), "tp needs a whole number above 0"),
        (("llama-3.1-8b", "megatron:tp=3", "sglang:tp=1"), "tp=3 does not divide the model's num_attention_heads=32"),
        (("qwen3-30b-a3b", "megatron:tp=2,ep=16", "sglang:tp=1"), "ep=16 times etp=1 must divide"),
        (("qwen3-30b-a3b", "megatron:tp=2", "sglang:tp=8,ep=3"), "ep=3 does not divide"),
        (("llama-3.1-8b", "megatron:tp=1", "sglang:tp=2", "--colocated"), "the target has 2 ranks, the source only 1"),
        (("llama-3.1-8b", "megatron:tp=1", "sglang:tp=1", "--place"), "give --colocated"),
    ],
)
def test_what_cannot_be_meant_is_said(arguments, message, monkeypatch, capsys):
    model, source, target, *more = arguments
    words = ["plan.py", "reshard", "--model", model, "--source", source, "--target", target, *more]
    monkeypatch.setattr(sys, "argv", words)
    assert tool().main() == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


def tool():
    spec = importlib.util.spec_from_file_location("plan_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
