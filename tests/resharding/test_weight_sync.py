"""Real Megatron ranks give real SGLang engines their weights; SGLang's own loading of the same folder is the oracle."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine.oracles import logprobs_by
from models import save_tiny_model
from resharding.sync_worker import CHANGED_EACH, LONG, PROMPT, STREAMS

WORKER = Path(__file__).with_name("sync_worker.py")

# Starts of torchrun with engines: ranks, family, engines (tp, ep, count), dtype, and the trainers' layouts there.
# buffer_bytes: so small that the model goes in chunks. hosts: as if the ranks were on machines of their own. requests:
# under way at the second update, on each engine.
STARTS = {
    "tp1": (
        2,
        "qwen3",
        {"tp": 1},
        "float32",
        {
            "TP2": {"parallel": {"tensor": 2}, "requests": 64},
            "PP2 in chunks": {"parallel": {"pipeline": 2}, "buffer_bytes": 60_000},
            "TP2 on two machines, in chunks": {"parallel": {"tensor": 2}, "buffer_bytes": 60_000, "hosts": [0, 1]},
            "TP2 from process to process": {"parallel": {"tensor": 2}, "transport": "disaggregated"},
            "PP2 from process to process, in chunks": {
                "parallel": {"pipeline": 2},
                "buffer_bytes": 60_000,
                "transport": "disaggregated",
            },
            "TP2 through files": {"parallel": {"tensor": 2}, "transport": "disk"},
            "PP2 through files, in chunks": {
                "parallel": {"pipeline": 2},
                "buffer_bytes": 60_000,
                "transport": "disk",
            },
        },
    ),
    "tp2": (
        4,
        "llama",
        {"tp": 2},
        "bfloat16",
        {
            "TP2xPP2": {"parallel": {"tensor": 2, "pipeline": 2}},
            "PP2xDP2": {"parallel": {"pipeline": 2}},
            "TP2xPP2 through files, deltas": {
                "parallel": {"tensor": 2, "pipeline": 2},
                "transport": "disk",
                "delta": True,
            },
        },
    ),
    "tp2 ep2": (
        2,
        "qwen3_moe",
        {"tp": 2, "ep": 2},
        "float32",
        {
            "EP2": {"parallel": {"expert": 2}},
            "TP2xEP2": {"parallel": {"tensor": 2, "expert": 2, "expert_tensor": 1, "sequence": True}},
        },
    ),
    "two engines": (
        2,
        "qwen2",
        {"tp": 1, "count": 2},
        "float32",
        {
            "DP2": {"parallel": {}},
            "DP2 from process to process": {"parallel": {}, "transport": "disaggregated"},
            "TP2 from process to process, in chunks": {
                "parallel": {"tensor": 2},
                "buffer_bytes": 60_000,
                "transport": "disaggregated",
            },
            "TP2 from process to process, in chunks, deltas": {
                "parallel": {"tensor": 2},
                "buffer_bytes": 60_000,
                "transport": "disaggregated",
                "delta": True,
            },
            "PP2 through files": {"parallel": {"pipeline": 2}, "transport": "disk"},
        },
    ),
}
IN_PLACE = {("two engines", "DP2"), ("tp2 ep2", "EP2")}
CASES = [(start, case) for start, (*_, cases) in STARTS.items() for case in cases]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(start, case) → what the worker found, and the folder of the weights."""
    root = tmp_path_factory.mktemp("sync")

    class Found(dict):
        def __missing__(self, case):
            self.update({(case[0], name): result for name, result in run(root, case[0]).items()})
            return self[case]

    return Found()


def run(root, start):
    ranks, family, engines, dtype, cases = STARTS[start]
    root /= start.replace(" ", "-")
    save_tiny_model(root / "start", family, seed=100)
    for seed in range(len(cases)):
        save_tiny_model(root / str(seed), family, seed=seed)
    job = {
        "start": str(root / "start"),
        "engines": engines,
        "dtype": dtype,
        "cases": [{"name": n, "folder": str(root / str(i)), **how} for i, (n, how) in enumerate(cases.items())],
        "out": str(root / "found.json"),
    }
    launch(WORKER, ranks, job, root / "log")
    results = json.loads((root / "found.json").read_text())
    return {
        case: {**result, "folder": root / str(i), "family": family} for i, (case, result) in enumerate(results.items())
    }


def launch(worker, ranks, job, log):
    command = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    with open(log, "wb") as file:
        status = subprocess.run(
            [*command, str(worker), json.dumps(job)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            timeout=500 + 180 * len(job.get("kills", [])),
        )
    assert status.returncode == 0, log.read_text()[-6000:]


pytestmark = [pytest.mark.engine, pytest.mark.distributed]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[1]} to {case[0]}")


@each_case
def test_every_parameter_is_what_sglang_itself_makes_of_the_folder(found, case):
    result = found[case]
    assert result["before"] != result["loaded"]
    assert result["sent"] == result["loaded"]


@each_case
def test_no_byte_more_than_the_lower_bound_is_moved(found, case):
    for report in (found[case]["report"], found[case]["again"]):
        assert report["bytes_full"] == report["lower_bound"]
        assert (report["bytes_moved"] < report["bytes_full"]) == (report["changed"] is not None)
        assert report["verified"]


@each_case
def test_only_what_changed_is_moved_if_that_is_wanted(found, case):
    first, second = found[case]["report"], found[case]["again"]
    assert first["changed"] is None
    if "deltas" not in case[1]:
        assert second["changed"] is None
        return
    assert second["changed"] == pytest.approx(1 / CHANGED_EACH, rel=0.1)
    width = 2 if STARTS[case[0]][3] == "bfloat16" else 4
    assert second["bytes_moved"] / second["bytes_full"] < 1 / (8 * width) + 1.2 / CHANGED_EACH


@each_case
def test_one_copy_leaves_the_trainers_however_many_engines_there_are(found, case):
    engines = STARTS[case[0]][2].get("count", 1)
    report = found[case]["report"]
    assert report["bytes_out"] * engines == report["bytes_moved"]


@each_case
def test_no_file_is_left(found, case):
    assert found[case]["files"] == []


@pytest.mark.parametrize("case", [case for case in CASES if "through files" in case[1]], ids=lambda case: case[1])
def test_on_a_full_disk_the_engines_keep_what_they_have(found, case):
    result = found[case]
    full = result["full"]
    assert "cannot write the new weights" in full["error"]
    assert "resharding.folder" in full["error"]
    assert full["sums"] == result["sent"]
    for answer in full["answers"]:
        assert [version for version, _ in answer["versions"]] == [str(result["again"]["version"])]


@each_case
def test_nothing_is_moved_where_every_device_has_all_that_its_engine_needs(found, case):
    assert (found[case]["report"]["bytes_moved"] == 0) == (case in IN_PLACE)


@each_case
def test_a_model_larger_than_the_buffer_goes_in_chunks(found, case):
    assert (found[case]["chunks"] > 3) == ("in chunks" in case[1])


@each_case
def test_the_engine_generates_with_the_new_weights_under_their_version(found, case):
    from transformers import AutoModelForCausalLM

    result = found[case]
    model = AutoModelForCausalLM.from_pretrained(result["folder"], dtype=torch.float32)
    tolerance = 2e-6 if STARTS[case[0]][3] == "float32" else 0.05
    for answer in result["answers"]:
        assert [version for version, _ in answer["versions"]] == [str(result["again"]["version"])]
        tokens = PROMPT + answer["tokens"]
        rows = logprobs_by(model, tokens, 1.0)[len(PROMPT) :]
        expected = rows.gather(1, torch.tensor(answer["tokens"])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(answer["logprobs"]), expected, rtol=0, atol=tolerance)


@each_case
def test_requests_under_way_go_on_under_the_new_weights(found, case):
    result = found[case]
    _, _, engines, _, cases = STARTS[case[0]]
    assert len(result["under_way"]) == cases[case[1]].get("requests", STREAMS) * engines.get("count", 1)
    versions = [str(result[name]["version"]) for name in ("report", "again")]
    for answer in result["under_way"]:
        assert len(answer["tokens"]) == LONG
        assert [version for version, _ in answer["versions"]] == versions
        assert sum(tokens for _, tokens in answer["versions"]) == LONG


@each_case
def test_generation_stands_still_for_the_update_and_no_longer(found, case):
    """Beside the update: prefixes are computed again. The bound is for busy machines; the figure is in the docs."""
    standstill = found[case]["standstill"]
    assert 0 < standstill["gap"] < standstill["update"] + 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "dtype"), [("colocated", "float32"), ("disaggregated", "float32"), ("disk", "bfloat16")]
)
def test_an_engine_killed_in_an_update_is_started_again_and_serves_what_it_reports(tmp_path, transport, dtype):
    save_tiny_model(tmp_path / "start", "qwen3")
    job = {
        "start": str(tmp_path / "start"),
        "engines": {"tp": 1, "count": 2},
        "dtype": dtype,
        "transport": transport,
        "updates": int(os.environ.get("AREAL_MEGA_UPDATES", "4")),
        "kills": json.loads(os.environ.get("AREAL_MEGA_KILLS", "[2]")),
        "out": str(tmp_path / "found.json"),
    }
    launch(WORKER.with_name("kill_worker.py"), 2, job, tmp_path / "log")
    found = json.loads((tmp_path / "found.json").read_text())
    for version, engines in enumerate(found["said"], start=1):
        for reported, *spans in engines:
            assert (reported, [v for v, _ in spans]) == (version, [str(version)])
    assert sum(found["starts"]) == 2 + len(job["kills"])
    assert (min(found["changed"]) < 0.1) == (transport != "colocated")
