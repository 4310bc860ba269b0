"""The collector in its own process with the real engine: batches while weights change, and clear ends."""

import os
import signal
import socket
from functools import partial

import psutil
import pytest
from engine.conftest import EOS
from engine.oracles import make_prompts
from models import tiny_model

from areal_mega.config.errors import UserError
from areal_mega.config.options import RewardOptions, SelectionOptions
from areal_mega.data.stream import PromptStream
from areal_mega.rewards import judge
from areal_mega.rollout.collector import Place, Setup
from areal_mega.rollout.collector_process import RemoteCollector
from areal_mega.rollout.local_collector import LocalCollector
from areal_mega.rollout.local_engines import LocalEngines
from areal_mega.rollout.server import EngineError
from areal_mega.rollout.staleness import StalenessManager

pytestmark = pytest.mark.engine

BATCH = 4


@pytest.fixture
def setup(server, options, tokenizer):
    def make(eta=0, spare=0, **selection):
        engines = LocalEngines([server])
        options.selection = SelectionOptions(**selection)
        return Setup(
            engines=engines.addresses,
            tokenizer=tokenizer,
            options=options,
            stop_tokens=(EOS,),
            stream=PromptStream(make_prompts([3, 8, 20, 11, 5, 7, 9], seed=2), True, 1),
            judge=partial(judge, options=RewardOptions(name="exact_match")),
            manager=StalenessManager(BATCH, eta, 64, spare=spare),
            place=Place(),
            seed=1,
        ), engines

    yield make
    options.selection = SelectionOptions()


@pytest.fixture
def remote(setup):
    started = []

    def start(**options):
        collector = RemoteCollector(*setup(**options))
        started.append(collector)
        return collector

    yield start
    for collector in started:
        collector.close()


@pytest.fixture
def weights_restored(transport, start_model):
    yield
    transport.send(start_model.named_parameters(), version=0)


@pytest.mark.usefixtures("weights_restored")
def test_batches_come_while_weights_change(remote, server, transport, options, tokenizer):
    collector, eta = remote(eta=2), 2
    last = None
    for version in range(4):
        batch = collector.take()
        assert len(batch.samples) == BATCH * options.samples_per_prompt
        assert [s.group for s in batch.samples[:: options.samples_per_prompt]] == list(range(BATCH))
        ages = {version - v for s in batch.samples for v, m in zip(s.versions, s.loss_mask, strict=True) if m}
        assert ages <= set(range(eta + 1))
        assert batch.metrics["rollout/staleness_max"] == max(ages)
        assert batch.metrics["rollout/requests_resent_total"] == 0
        assert batch.metrics["engines/alive"] == 1
        server.order("/pause_generation", {"mode": "retract"})
        transport.send(tiny_model("qwen3", seed=version + 1).named_parameters(), version + 1)
        server.order("/continue_generation")
        collector.publish(version + 1)
        last = batch
    held_out = collector.generate(make_prompts([3, 4]), 1, 0.0, 1)
    assert [s.group for s in held_out] == [0, 1] and {s.versions[-1] for s in held_out} == {4}
    assert last.place.position - len(last.place.pending) == 4 * BATCH


def test_what_a_user_did_wrong_is_said_by_the_trainer(remote):
    collector = remote(min_success=0.9)  # a random model is never right
    with pytest.raises(UserError, match=r"too_hard.*Loosen rollout.selection"):
        collector.take()


@pytest.mark.parametrize("seen", [False, True])
def test_a_killed_collector_is_an_error(remote, seen):
    collector = remote()
    process = psutil.Process(collector._process.pid)
    os.kill(process.pid, signal.SIGKILL)
    if seen:  # nobody listens any more when the trainer asks
        collector._process.wait(20)
    with pytest.raises(EngineError, match=r"collector process died \(exit status -9\)"):
        collector.take()


def test_a_killed_trainer_leaves_no_collector(remote):
    other = remote()
    other.take()
    # What the kernel does for a trainer that is gone.
    socket.socket(fileno=os.dup(other._pipe.fileno())).shutdown(socket.SHUT_RDWR)
    assert other._process.wait(20) == 0


def test_in_this_process_the_slowest_are_cut_and_counted(setup):
    collector = LocalCollector(*setup(spare=2))
    batch = collector.take()
    assert len(batch.samples) == BATCH * 4
    assert batch.metrics["rollout/groups_drawn"] == BATCH + 2
    dropped = sum(n for name, n in batch.metrics.items() if "groups_dropped" in name)
    assert dropped == 2 and batch.metrics["rollout/tokens_wasted"] > 0
    assert batch.place == Place(BATCH + 2)
