"""Plans between random layouts, carried out element by element; and how even they are on real ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from resharding.random_layouts import elements, filled, groups_of_layouts, shapes, view

from areal_mega.resharding.assign import Devices, fill
from areal_mega.resharding.known_models import known_model
from areal_mega.resharding.layouts import (
    MegatronGrid,
    SGLangGrid,
    megatron_layout,
    sglang_layout,
    whole_tensors,
)
from areal_mega.resharding.lower_bound import lower_bound
from areal_mega.resharding.placement import match, place_engines
from areal_mega.resharding.plan import plan


@st.composite
def cases(draw):
    tensors = draw(shapes())
    sources = draw(groups_of_layouts(tensors, draw(st.integers(1, 6)), whole=True))
    destinations = draw(groups_of_layouts(tensors, draw(st.integers(1, 6)), whole=False))
    device = st.integers(0, 7)
    devices = Devices(
        tuple(draw(device) for _ in sources),
        tuple(draw(device) for _ in destinations),
        per_node=draw(st.integers(1, 4)),
    )
    return tensors, sources, destinations, devices, draw(st.one_of(st.none(), st.integers(1, 200)))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_element_arrives_exactly_once_and_no_more_than_that_is_moved(case):
    tensors, sources, destinations, devices, chunk = case
    made = plan(sources, destinations, devices, chunk)
    whole = elements(tensors)
    mail = sent_messages(made, [filled(layout, whole) for layout in sources])
    written_total = 0
    for rank, layout in enumerate(destinations):
        own = {name: np.zeros(int(np.prod(shape)), np.int64) for name, shape in layout.shapes.items()}
        writes = {name: np.zeros_like(tensor) for name, tensor in own.items()}
        for message in made.receives(rank):
            buffer = mail.pop((message.source, rank, message.chunk))
            assert len(buffer) == message.numel
            written_total += message.numel
            for part in message.slices:
                values = buffer[part.offset : part.offset + part.piece.box.numel].reshape(part.piece.box.shape)
                view(own[part.piece.parameter], part.piece)[...] = values
                view(writes[part.piece.parameter], part.piece)[...] += 1
        for copy in made.copies(rank):
            assert devices.source[copy.source] == devices.destination[rank]
            assert copy.source_piece.box == copy.destination_piece.box
            there = filled(sources[copy.source], whole)[copy.source_piece.parameter]
            view(own[copy.destination_piece.parameter], copy.destination_piece)[...] = view(there, copy.source_piece)
            view(writes[copy.destination_piece.parameter], copy.destination_piece)[...] += 1
        for name, expected in filled(layout, whole).items():
            np.testing.assert_array_equal(own[name], expected)
            np.testing.assert_array_equal(writes[name], expected != 0)
    assert not mail
    assert written_total == made.statistics.moved == lower_bound(sources, destinations, devices)


def sent_messages(made, own):
    """(source, destination, chunk) → what is in the message; also checks the counts of messages and slices."""
    mail, slices = {}, 0
    for rank, tensors in enumerate(own):
        for message in made.sends(rank):
            buffer = np.zeros(message.numel, np.int64)
            for part in message.slices:
                values = view(tensors[part.piece.parameter], part.piece)
                buffer[part.offset : part.offset + part.piece.box.numel] = values.ravel()
            assert buffer.all()
            mail[rank, message.destination, message.chunk] = buffer
            slices += len(message.slices)
    assert (len(mail), slices) == (made.statistics.messages, made.statistics.slices)
    return mail


@settings(max_examples=100, deadline=None)
@given(cases())
def test_the_same_node_comes_before_other_nodes(case):
    _, sources, destinations, devices, _ = case
    made = plan(sources, destinations, devices)
    for i in np.flatnonzero(~made.flows.local):
        block = made.overlap.blocks[made.flows.block[i]]
        holders = [r for layout in made.overlap.holders[block.holders] for r in made.overlap.sources.ranks[layout]]
        node = devices.node(devices.destination[made.flows.destination[i]])
        near = [rank for rank in holders if devices.node(devices.source[rank]) == node]
        assert not near or made.flows.source[i] in near


def test_what_nobody_has_is_named():
    with pytest.raises(ValueError, match="no source has 3 of the 6 elements of b"):
        plan(
            [whole_tensors({"a": (4,), "b": (3,)})],
            [whole_tensors({"a": (4,), "b": (6,)})],
            Devices((0,), (1,)),
        )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(0, 300))
def test_water_rises_from_the_lowest_load(load, amount):
    shares = fill(np.array(load), amount)
    assert shares.sum() == amount
    assert (shares >= 0).all()
    after = np.array(load) + shares
    surface = after[shares > 0].max(initial=0)
    assert (after[shares > 0] >= surface - 1).all()
    assert (np.array(load)[shares == 0] >= surface - 1).all()


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 5).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 99), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_the_best_match_is_found(rows):
    from itertools import permutations

    gain = np.array(rows)
    columns = match(gain)
    best = max(sum(gain[i, c] for i, c in enumerate(order)) for order in permutations(range(len(gain))))
    assert sorted(columns) == list(range(len(gain)))
    assert gain[np.arange(len(gain)), columns].sum() == best


def planned(model, source, target, colocated, place=False):
    hf = known_model(model)
    sources = source.layouts(lambda at: megatron_layout(hf, at))
    targets = target.layouts(lambda at: sglang_layout(hf, at))
    first = 0 if colocated else source.world
    made = plan(sources, targets, Devices(tuple(range(source.world)), tuple(range(first, first + target.world))))
    if place:
        devices = place_engines(made.overlap, made.devices.source, target.tp, 8)
        made = made.on(Devices(made.devices.source, devices))
    return made.statistics, lower_bound(sources, targets, made.devices), made


SYMMETRIC = [
    ("qwen2.5-1.5b", MegatronGrid(tp=2, dp=4), SGLangGrid(tp=2, count=4)),
    ("qwen2.5-1.5b", MegatronGrid(tp=2, dp=3), SGLangGrid(tp=1, count=2)),  # six sources to two destinations
    ("qwen3-30b-a3b", MegatronGrid(tp=4, dp=4, ep=8), SGLangGrid(tp=8, ep=8, count=2)),
]


@pytest.mark.parametrize(("model", "source", "target"), SYMMETRIC)
def test_sources_of_equal_rank_send_equally_much(model, source, target):
    found, bound, made = planned(model, source, target, colocated=False)
    assert found.moved == bound
    sent = np.bincount(made.flows.source, made.flows.numel, source.world)
    assert sent.max() <= 1.01 * sent.mean()
    assert found.messages <= target.world * source.world


def test_the_best_devices_for_smaller_engines():
    source, target = MegatronGrid(tp=8), SGLangGrid(tp=4, count=2)
    default, _, _ = planned("qwen2.5-32b", source, target, colocated=True)
    best, bound, made = planned("qwen2.5-32b", source, target, colocated=True, place=True)
    assert default.local_fraction == pytest.approx(0.125, abs=0.002)
    assert best.local_fraction == pytest.approx(0.5, abs=0.002)
    assert best.moved == bound
    assert sorted(made.devices.destination) == list(range(8))
