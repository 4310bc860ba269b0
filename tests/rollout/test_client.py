"""Reading the engine's answers."""

import pytest

from areal_mega.rollout.client import parse_generation
from areal_mega.rollout.server import EngineError


def answer(finish_reason):
    return {
        "output_ids": [11, 44, 40],
        "meta_info": {
            "finish_reason": finish_reason,
            "output_token_logprobs": [[-0.5, 11, None], [-1.5, 44, None], [-2.5, 40, None]],
            "weight_version": "5",
            "weight_versions": [
                {"version": "4", "start": 0, "end": 2},
                {"version": "5", "start": 2, "end": 3},
            ],
        },
    }


def test_versions_are_those_of_each_token():
    generation = parse_generation(answer({"type": "length", "length": 3}))

    assert generation.tokens == [11, 44, 40]
    assert generation.logprobs == [-0.5, -1.5, -2.5]
    assert generation.versions == [4, 4, 5]
    assert generation.finish_reason == "length"


def test_a_token_the_engine_names_no_version_for_has_none():
    one = answer({"type": "length", "length": 3})
    one["meta_info"]["weight_versions"].pop(0)

    assert parse_generation(one).versions == [-1, -1, 5]


def test_logprobs_of_other_tokens_are_refused():
    one = answer({"type": "length", "length": 3})
    one["meta_info"]["output_token_logprobs"].pop()

    with pytest.raises(EngineError, match=r"\[11, 44, 40\] with the log-probs of \[11, 44\]"):
        parse_generation(one)


@pytest.mark.parametrize("reason", [{"type": "stop", "matched": "NaN happened"}, {"type": "error"}])
def test_a_failed_request_is_not_a_sample(reason):
    with pytest.raises(EngineError, match=r"NaN happened|error"):
        parse_generation(answer(reason))
