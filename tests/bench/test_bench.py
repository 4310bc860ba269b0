"""The program, run as a user runs it, and the parts of it whose mistakes no table would show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from areal_mega.bench import rows as results
from areal_mega.bench.case import Case, Contender, NotApplicable, Plan, Work, relative_error
from areal_mega.bench.cases import OPERATIONS
from areal_mega.bench.clock import LEAST_ROUNDS, MOST_ROUNDS, CpuClock, take_turns
from areal_mega.bench.measure import measure
from areal_mega.bench.table import write_markdown
from areal_mega.config.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
PROMISED = [
    "op",
    "direction",
    "backend",
    "shape",
    "dtype",
    "device",
    "median_ms",
    "peak_extra_mb",
    "error",
    "best_peer",
    "best_peer_ms",
    "ratio",
    "gb_per_s",
    "tflop_per_s",
    "fraction_of_limit",
]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "tools/bench.py", *arguments]
    # Threads of OpenMP that spin while another process has their core make short runs very long.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def rows_of(path: Path, *arguments: str) -> list[dict[str, Any]]:
    finished = bench(*arguments, "--json", str(path))
    assert finished.returncode == 0, finished.stderr
    assert path.with_suffix(".png").stat().st_size > 1000
    return json.loads(path.read_text())


def check_rows(rows: list[dict[str, Any]]) -> None:
    """What scripts rely on."""
    for row in rows:
        assert list(row)[: len(PROMISED)] == PROMISED
        assert row["median_ms"] > 0
        assert row["direction"] in ("forward", "forward_backward")
        peers = [r for r in rows if r["role"] == "peer" and same_case(r, row)]
        best = min(peers, key=lambda peer: peer["median_ms"])
        assert (row["best_peer"], row["best_peer_ms"]) == (best["backend"], best["median_ms"])
        assert row["ratio"] == pytest.approx(row["best_peer_ms"] / row["median_ms"])
        if row["fraction_of_limit"] is not None:
            assert row["fraction_of_limit"] > 0
            assert row["limit"] in ("read", "copy", "matmul")


def same_case(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[key] == b[key] for key in ("op", "direction", "shape", "dtype", "device"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return rows_of(tmp_path_factory.mktemp("bench") / "rows.json", "--device", "cpu")


def test_every_operation_and_backend_has_rows_as_promised(small: list[dict[str, Any]]) -> None:
    assert list(dict.fromkeys(row["op"] for row in small)) == list(OPERATIONS)
    check_rows(small)
    for op in OPERATIONS:
        backends = {row["backend"] for row in small if row["op"] == op and row["role"] == "ours"}
        assert {"cpp", "reference"} <= backends


def test_errors_are_those_of_float32(small: list[dict[str, Any]]) -> None:
    for row in small:
        if row["op"] in ("pack_pieces", "unpack_pieces"):
            assert row["error"] == 0
        elif row["op"] not in ("balance", "first_fit"):
            assert 0 < row["error"] < 1e-5, row


def test_ours_takes_no_memory_beyond_its_results_where_that_is_promised(small: list[dict[str, Any]]) -> None:
    for row in small:
        if row["backend"] == "cpp, in place":
            assert row["outputs_mb"] < 0.1  # log-probs and entropies; the gradient is where the logits were


def test_peers_that_are_not_there_are_named_with_the_reason(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows.json", "policy_loss", "--device", "cpu", "--peers")
    check_rows(rows)
    assert "torch.compile" in {row["backend"] for row in rows}
    finished = bench("--rows", str(tmp_path / "rows.json"))
    assert "torch.compile" in finished.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_every_operation_of_the_gpu_has_rows_as_promised(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "rows.json", "--device", "cuda")
    check_rows(rows)
    assert {row["op"] for row in rows} == set(OPERATIONS) - {"balance", "first_fit"}


def test_help_and_unknown_names() -> None:
    assert "--shapes {small,real}" in bench("--help").stdout
    finished = bench("gea")
    assert finished.returncode == 2
    assert "op gea is unknown (did you mean gae?): expected some of logprob_from_logits, " in finished.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there() -> None:
    finished = bench("--device", "cuda")
    assert finished.returncode == 2
    assert "--device cuda: torch finds no CUDA device here" in finished.stderr


def test_contenders_take_turns() -> None:
    order: list[str] = []
    contenders = [Contender(name, lambda name=name: order.append(name) or ()) for name in "abc"]
    times = take_turns(contenders, CpuClock(), seconds=0)
    assert order == list("abc") * LEAST_ROUNDS
    assert [len(own) for own in times] == [LEAST_ROUNDS] * 3
    assert len(take_turns(contenders[:1], CpuClock(), seconds=60)[0]) == MOST_ROUNDS


def test_reset_comes_before_each_run_and_is_not_timed() -> None:
    events: list[str] = []

    def slow_reset() -> None:
        events.append("reset")
        torch.randn(2_000_000)

    contender = Contender("", lambda: events.append("run") or (), reset=slow_reset)
    (times,) = take_turns([contender], CpuClock(), seconds=0)
    assert events == ["reset", "run"] * LEAST_ROUNDS
    assert max(times) < 1


def test_peak_memory_is_that_of_one_run() -> None:
    def run(mib: int) -> tuple[torch.Tensor]:
        torch.ones(mib * 2**18)  # given back before the end
        return (torch.ones(2**18),)

    outputs, peak = CpuClock().peak(lambda: run(64))
    assert peak == pytest.approx(64, abs=4)
    assert outputs[0].nbytes == 2**20
    assert CpuClock().peak(lambda: run(8))[1] == pytest.approx(8, abs=4)  # not the 64 of before


def test_relative_error_is_of_the_worst_output() -> None:
    exact = [torch.tensor([1.0, -4.0]).double(), torch.tensor([10.0]).double()]
    assert relative_error([torch.tensor([1.0, -4.0]), torch.tensor([10.0])], exact) == 0
    assert relative_error([torch.tensor([1.0, -3.0]), torch.tensor([11.0])], exact) == pytest.approx(0.25)
    assert relative_error([None, torch.tensor([11.0])], exact) == pytest.approx(0.1)


class _OneGigabyteASecond:
    """Stands for a machine whose limits are round numbers."""

    def least_ms(self, work: Work, dtype: torch.dtype) -> tuple[float, str]:
        return (work.read + work.written) / 1e6, "copy"


def measured(*contenders: Contender) -> tuple[list[results.Row], list[Any]]:
    case = Case(contenders, [], [], Work(10**6, 10**6), lambda outputs: 0.0)
    plan = Plan("op", "forward", "N=1", torch.float32, CPU, lambda peers: case)
    return measure(plan, False, 0, CpuClock(), _OneGigabyteASecond(), "machine", lambda _: None)  # type: ignore[arg-type]


def test_a_peer_that_cannot_run_is_skipped_and_a_broken_kernel_is_not() -> None:
    def cannot() -> tuple:
        raise NotApplicable("has GPU kernels only")

    def broken() -> tuple:
        raise ValueError("wrong shape")

    works = Contender("cpp", lambda: (), "ours")
    rows, skipped = measured(
        works, Contender("far", cannot), Contender("bad", broken), Contender("part", tuple, "partial")
    )
    assert [row.backend for row in rows] == ["cpp", "part"]
    assert rows[0].best_peer is None  # who computes less is nobody's best peer
    assert rows[0].fraction_of_limit == pytest.approx(2 / rows[0].median_ms)
    assert {s.name: s.reason for s in skipped} == {
        "far": "has GPU kernels only",
        "bad": "fails: ValueError: wrong shape",
    }
    with pytest.raises(ValueError, match="wrong shape"):
        measured(works, Contender("triton", broken, "ours"))
    with pytest.raises(RuntimeError, match="no backend runs"):
        measured(Contender("peer", tuple))


def test_markdown_goes_between_the_markers_of_its_device(tmp_path: Path) -> None:
    rows, _ = measured(Contender("cpp", tuple, "ours"), Contender("torch eager", tuple))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench cpu -->\nold\n<!-- /bench cpu -->\nafter\n")
    write_markdown(page, rows)
    text = page.read_text()
    assert text.startswith("before\n<!-- bench cpu -->\nMeasured on: machine.")
    assert text.endswith("|\n<!-- /bench cpu -->\nafter\n")
    assert "old" not in text and "`op` forward" in text
    page.write_text("no markers")
    with pytest.raises(UserError, match="<!-- bench cpu -->"):
        write_markdown(page, rows)


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows, _ = measured(Contender("cpp", tuple, "ours"), Contender("torch eager", tuple))
    results.write(tmp_path / "rows.json", rows)
    assert results.read(tmp_path / "rows.json") == rows
    (tmp_path / "other.json").write_text('[{"op": 1}]')
    with pytest.raises(UserError, match=r"other\.json is not what --json writes"):
        results.read(tmp_path / "other.json")
