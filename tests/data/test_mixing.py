from hypothesis import given
from hypothesis import strategies as st

from areal_mega.config.options import DataOptions, DataSetOptions
from areal_mega.data.mixing import mixed, training_sets

SETS = st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 10)), min_size=1, max_size=4)


@given(SETS)
def test_a_pass_has_every_item_and_the_weights(sets):
    items = [[(i, k) for k in range(size)] for i, (size, _) in enumerate(sets)]
    weights = [weight for _, weight in sets]
    drawn = mixed(items, weights)
    assert set(drawn) == {item for one in items for item in one}
    counts = [sum(i == j for i, _ in drawn) for j in range(len(sets))]
    for i, size in enumerate(map(len, items)):
        # No item more than once more often than another of its set, and shares as the weights ask, up to rounding.
        times = [drawn.count(item) for item in items[i]]
        assert max(times) - min(times) <= 1 and counts[i] >= size
        passes = max(len(one) / weight for one, weight in zip(items, weights, strict=True))
        assert abs(counts[i] - passes * weights[i]) <= 0.5 + 1e-9


def test_the_sets_are_spread_evenly():
    drawn = mixed([["a"] * 30, ["b"] * 10], [3, 1])
    assert all(drawn[i : i + 4].count("b") == 1 for i in range(0, 40, 4))


def test_one_set_stays_as_it_is():
    assert mixed([[3, 1, 2]], [0.3]) == [3, 1, 2]


def test_a_small_set_is_repeated_as_its_weight_asks():
    drawn = mixed([list("abcdefgh"), ["x", "y"]], [1, 1])
    assert [drawn.count(c) for c in "axy"] == [1, 4, 4]


def test_the_sets_of_the_options():
    data = DataOptions(train="a", weight=2.0, format="math", mix=[DataSetOptions("b", 0.5)])
    assert [(name, how.path, how.weight, how.format) for name, how in training_sets(data)] == [
        ("data.train", "a", 2.0, "math"),
        ("data.mix[0].path", "b", 0.5, "auto"),
    ]
