"""Meetings and chains of real gloo groups, each member a thread of its own; one that is lost closes its connections."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event

import pytest
import torch
import torch.distributed as dist

from areal_mega.resharding import peers, relay
from areal_mega.resharding.delta import WHOLE, encode, whole
from areal_mega.resharding.peers import convene, join, store_at
from areal_mega.resharding.relay import Chain, parts, send

CPU = torch.device("cpu")
RANKS = (1, 2, 3)  # of the workers; rank 0 is the trainer
WORLD = 1 + len(RANKS)
LAST = torch.arange(1000, dtype=torch.int16)
NEW = torch.where(LAST % 9 == 0, LAST + 7, LAST)


@pytest.fixture(scope="module")
def store():
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def threads():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def meeting(store, threads, name, world):
    """The groups of all ranks, by rank."""
    others = [
        threads.submit(join, store_at(store.host, store.port), name, rank, world, CPU) for rank in range(1, world)
    ]
    convene(store, name, world, lambda: False)
    return [join(store, name, 0, world, CPU), *(other.result(60) for other in others)]


def beside(rank):
    """The ranks before and behind a worker."""
    return rank - 1 or None, rank + 1 if rank < RANKS[-1] else None


def work(group, before, behind):
    """A worker's chunk: whether it got everything, and its message."""
    chain = Chain(group, before, behind, CPU)
    (header,) = chain.headers([0])
    payload = torch.empty(header[-1], dtype=torch.uint8)
    chain.take(list(parts(payload, 0)))
    return chain.finish(), header, payload


@pytest.mark.parametrize("delta", [False, True])
def test_every_engine_gets_the_one_copy_that_is_sent(store, threads, monkeypatch, delta):
    monkeypatch.setattr(relay, "SEGMENT_BYTES", 300)
    groups = meeting(store, threads, f"chain/{delta}", WORLD)
    new, last = NEW.view(torch.uint8), LAST.view(torch.uint8)
    encoded = encode(new, last, 2) if delta else whole(new, 2)
    assert (encoded.kind == WHOLE) != delta
    workers = [threads.submit(work, groups[rank], *beside(rank)) for rank in RANKS]
    for sent, _ in send(groups[0], encoded, 0, 1):
        sent.wait()
    for worker in workers:
        complete, header, payload = worker.result(60)
        assert complete
        assert header == encoded.header
        assert torch.equal(payload, encoded.payload)


@pytest.mark.parametrize("lost", RANKS)
def test_those_behind_a_lost_engine_know_it_and_those_before_it_have_everything(store, threads, monkeypatch, lost):
    monkeypatch.setattr(relay, "SEGMENT_BYTES", 300)
    groups = meeting(store, threads, f"lost {lost}", WORLD)
    encoded = whole(NEW.view(torch.uint8), 2)
    workers = {rank: threads.submit(work, groups[rank], *beside(rank)) for rank in RANKS if rank != lost}
    groups[lost] = None  # closes its connections
    try:
        for sent, _ in send(groups[0], encoded, 0, 1):
            sent.wait()
    except RuntimeError:
        assert lost == 1
    for rank, worker in workers.items():
        complete, _, payload = worker.result(60)
        assert complete == (rank < lost)
        if complete:
            assert torch.equal(payload, encoded.payload)


def test_a_worker_that_is_lost_between_two_segments_is_missed_by_all_behind(store, threads, monkeypatch):
    monkeypatch.setattr(relay, "SEGMENT_BYTES", 300)
    groups = meeting(store, threads, "between", WORLD)
    encoded = whole(NEW.view(torch.uint8), 2)
    half = Event()

    def first() -> None:
        chain = Chain(groups[1], None, 2, CPU)
        (header,) = chain.headers([0])
        payload = torch.empty(header[-1], dtype=torch.uint8)
        chain.take(list(parts(payload, 0))[:3])
        for sent, _ in chain._sent:
            sent.wait()
        half.set()

    dying = threads.submit(first)
    workers = [threads.submit(work, groups[rank], *beside(rank)) for rank in (2, 3)]
    sending = send(groups[0], encoded, 0, 1)
    half.wait(60)
    dying.result()
    groups[1] = None
    assert [worker.result(60)[0] for worker in workers] == [False, False]
    # Those that are left get it again, from the second on.
    del sending
    workers = [threads.submit(work, groups[2], None, 3), threads.submit(work, groups[3], 2, None)]
    for sent, _ in send(groups[0], encoded, 0, 2):
        sent.wait()
    for worker in workers:
        complete, _, payload = worker.result(60)
        assert complete
        assert torch.equal(payload, encoded.payload)


def test_a_meeting_is_called_off_when_somebody_will_not_come(store, threads):
    waiting = threads.submit(join, store_at(store.host, store.port), "off", 1, 3, CPU)
    polled = Event()

    def hopeless() -> bool:
        if polled.is_set():
            return True
        polled.set()
        return False

    convene(store, "off", 3, hopeless)
    assert join(store, "off", 0, 3, CPU) is None
    assert waiting.result(30) is None


def test_nobody_waits_long_for_one_that_is_lost_while_the_group_is_made(store, threads, monkeypatch):
    monkeypatch.setattr(peers, "CONNECTING", timedelta(seconds=1))
    store.set("gone/here/2", "")  # it said so, and died
    waiting = threads.submit(join, store_at(store.host, store.port), "gone", 1, 3, CPU)
    convene(store, "gone", 3, lambda: False)
    assert join(store, "gone", 0, 3, CPU) is None
    assert waiting.result(30) is None
