import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from problems import problem

from areal_mega.rewards.workers import Job, VerifierPool


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    pool = VerifierPool(2)
    yield pool
    pool.close()


def living(group):
    """Processes of a group that run; the dead ones may wait for their parent to notice."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of = file.read_text().rsplit(")", 1)[1].split()[:3]
            found += [file] if int(of) == group and state not in "ZX" else []
    return found


def job(function, response="1", seconds=60.0, **metadata):
    return Job(f"own_verifiers:{function}", response, problem("1", **metadata), seconds)


def test_scores_come_in_the_order_of_the_jobs(pool):
    scores = pool.score([job("says", str(i)) for i in range(50)])
    assert [s.value for s in scores] == list(range(50)) and not any(s.failed for s in scores)


def test_an_answer_that_hangs_costs_its_time_limit_and_not_more(pool, tmp_path):
    assert pool.score([job("says")])[0].value == 1  # a worker is up
    started = time.monotonic()
    hung, *others = pool.score([job("endless", seconds=2.0, folder=str(tmp_path))] + [job("says")] * 5)
    assert 2 <= time.monotonic() - started < 60
    assert hung.failed and hung.value == 0 and hung.note == "not judged within 2 seconds"
    assert [s.value for s in others] == [1] * 5
    # The worker is gone, and what it had started.
    [group] = [int(file.name) for file in tmp_path.iterdir()]
    assert not living(group)


def test_a_worker_that_dies_is_replaced(pool):
    scores = pool.score([job("dies"), job("dies"), job("dies"), job("says")])
    assert [s.failed for s in scores] == [True, True, True, False]
    assert "died (signal 9)" in scores[0].note


def test_what_is_no_score_has_failed(pool):
    [nan, text] = pool.score([job("says", "nan"), job("says", "much")])
    assert nan.failed and "not a finite number" in nan.note
    assert text.failed and "ValueError" in text.note


def test_workers_end_with_the_process_that_started_them(tmp_path):
    script = (
        "from problems import problem\n"
        "from areal_mega.rewards.workers import Job, VerifierPool\n"
        "pool = VerifierPool(1); pool.score([Job('own_verifiers:says', '1', problem('1'), 60.0)])\n"
        "print(pool._idle[0]._process.pid, flush=True); input()\n"
    )
    folder = Path(__file__).parent
    started = subprocess.Popen(
        [sys.executable, "-P", "-c", f"import sys; sys.path.append({str(folder.parent)!r})\n{script}"],
        cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    worker = int(started.stdout.readline())
    os.kill(worker, 0)
    started.kill()
    started.communicate()
    deadline = time.monotonic() + 60
    while (
        Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1][:3]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.2)
