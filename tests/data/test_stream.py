"""The order of prompts by their places."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_mega.config.errors import UserError
from areal_mega.config.options import CurriculumStageOptions as Stage
from areal_mega.data import Prompt
from areal_mega.data.jsonl import endless_batches
from areal_mega.data.stream import PromptStream


def prompts(count):
    return [Prompt(str(i), [1], "?", "7", {"difficulty": i}, source=f"data.jsonl:{i + 1}") for i in range(count)]


def ids(stream, places):
    return [stream.at(place)[0].id for place in places]


@given(st.integers(1, 7), st.integers(1, 5), st.booleans(), st.integers(0, 9), st.integers(0, 30))
def test_without_stages_it_is_the_order_of_endless_batches(count, size, shuffle, seed, start):
    batches = islice(endless_batches(prompts(count), size, shuffle, seed, start), 4)
    expected = [p.id for batch in batches for p in batch]
    assert ids(PromptStream(prompts(count), shuffle, seed), range(start, start + 4 * size)) == expected


@given(st.permutations(range(30)))
def test_a_place_has_the_same_prompt_in_whatever_order_it_is_asked_for(places):
    stages = [Stage(prompts=9, max_difficulty=3), Stage()]
    in_order = PromptStream(prompts(7), True, 1, stages)
    expected = {place: in_order.at(place) for place in range(30)}
    stream = PromptStream(prompts(7), True, 1, stages)
    assert {place: stream.at(place) for place in places} == expected


def test_stages_choose_by_difficulty_and_bound_the_response():
    stages = [Stage(prompts=4, max_difficulty=1, max_new_tokens=5), Stage(prompts=6, min_difficulty=2), Stage()]
    stream = PromptStream(prompts(5), True, 3, stages)
    assert sorted(ids(stream, range(4))) == ["0", "0", "1", "1"]
    assert sorted(ids(stream, range(4, 10))) == ["2", "2", "3", "3", "4", "4"]
    assert sorted(ids(stream, range(10, 15))) == list("01234")
    assert [stream.at(place)[1] for place in (0, 3, 4, 99)] == [5, 5, 0, 0]


def test_a_stage_nothing_fits_and_prompts_without_difficulty_are_named():
    with pytest.raises(UserError, match=r"data.curriculum\[1\]: no prompt"):
        PromptStream(prompts(3), True, 1, [Stage(prompts=1), Stage(min_difficulty=9)])
    plain = [Prompt("1", [1], "?", "7", source="data.jsonl:4")]
    with pytest.raises(UserError, match=r"needs a number metadata.difficulty; data.jsonl:4 has none"):
        PromptStream(plain, True, 1, [Stage(min_difficulty=1)])
