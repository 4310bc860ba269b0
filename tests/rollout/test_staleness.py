"""The staleness bound, by any order of events."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_mega.rollout.staleness import StalenessManager


@given(st.integers(1, 5), st.integers(0, 4), st.integers(1, 40), st.integers(0, 2**32))
def test_no_sample_is_staler_than_eta_when_it_is_trained_on(batch, eta, max_running, seed):
    rng = random.Random(seed)
    manager = StalenessManager(batch, eta, max_running)
    running: list[int] = []  # the version each was started at
    ready: list[int] = []
    for _ in range(200):
        if rng.random() < 0.6 and manager.capacity:
            manager.start()
            running.append(manager.version)
        elif rng.random() < 0.5 and running:
            started = running.pop(rng.randrange(len(running)))
            if rng.random() < 0.2:
                manager.reject()
            else:
                manager.accept()
                ready.append(started)
        elif len(ready) >= batch and manager.in_time([*sorted(ready)[batch:], *running]):
            ready.sort()
            taken, ready = ready[:batch], ready[batch:]
            assert all(manager.version - v <= eta for v in taken)
            manager.publish(manager.version + 1)
        assert manager.running == len(running) <= max_running
        assert manager.accepted == manager.version * batch + len(ready)
        assert manager.accepted + manager.running <= (eta + manager.version + 1) * batch
    # Training can always go on: when all that runs is finished, there is a batch and it may be taken.
    while manager.capacity:
        manager.start()
        running.append(manager.version)
    if max_running >= batch:
        everything = sorted([*ready, *running])
        assert len(everything) >= batch and manager.in_time(everything[batch:])


@given(
    st.integers(1, 9), st.integers(0, 9), st.integers(1, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 9)
)
def test_capacity_is_the_formula(batch, eta, max_running, running, accepted, version):
    manager = StalenessManager(batch, eta, max_running, version, running=running, accepted=accepted)
    formula = min(max_running - running, (eta + version + 1) * batch - (accepted + running))
    assert manager.capacity == max(0, formula)


def test_a_resumed_run_goes_on_as_if_it_had_never_ended():
    assert StalenessManager(4, 1, 99, version=10).capacity == 8


def test_without_capacity_nothing_is_started():
    manager = StalenessManager(1, 0, 9)
    manager.start()
    with pytest.raises(ValueError, match="no capacity"):
        manager.start()


@pytest.mark.parametrize("numbers", [{"batch": 0}, {"eta": -1}, {"max_running": 0}, {"version": -1}, {"spare": -1}])
def test_numbers_that_cannot_be_are_refused(numbers):
    with pytest.raises(ValueError, match="cannot be"):
        StalenessManager(**{"batch": 1, "eta": 0, "max_running": 1, **numbers})
