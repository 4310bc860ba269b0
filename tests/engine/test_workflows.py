"""Every workflow with the real engine: aligned, and with the log-probs that `transformers` gives."""

import re
from dataclasses import replace

import openai
import pytest
from engine.conftest import EOS
from engine.oracles import assert_logprobs_are_those_of, make_prompts
from rollout.templates import CHATML, tokenizer_of

from areal_mega.data import Prompt
from areal_mega.rollout.local_engines import LocalEngines
from areal_mega.rollout.sampler import Sampler
from areal_mega.rollout.tools import calls

pytestmark = pytest.mark.engine

TOKENIZER = tokenizer_of(CHATML)
QUESTION = [{"role": "user", "content": "2+2?"}]
END = "<|im_end|>"
# A random model hardly ever says the one end token: forty characters end its turns as well.
STOPS = [EOS, *range(40, 80)]


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.chdir(__file__.rpartition("/")[0])


def chat_prompt():
    text = TOKENIZER.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    return Prompt("1", TOKENIZER(text)["input_ids"], text, "4", messages=QUESTION)


def draw(server, options, samples, prompts=None, **chosen):
    options = replace(options, max_prompt_tokens=200, max_new_tokens=24, **chosen)
    prompts = prompts or [chat_prompt()]
    return Sampler(LocalEngines([server]), TOKENIZER, options, STOPS).generate(prompts, samples, temperature=1.0)


def assert_aligned(samples, model):
    assert_logprobs_are_those_of(model, samples)
    for sample in samples:
        generated = [t for turn in sample.turns for t in range(turn.start, turn.end)]
        assert generated == [t for t, m in enumerate(sample.loss_mask) if m]
        assert [v >= 0 for v in sample.versions] == sample.loss_mask


def conversation(sample):
    """The turns of a ChatML text, as (role, content); the last may lack its end.

    A random model also says the marks of turns: those of the template are the ones that are followed by a role.
    """
    turns = re.split(r"<\|im_start\|>(system|user|assistant|tool)\n", TOKENIZER.decode(sample.tokens))[1:]
    return [(role, text.rstrip("\n").removesuffix(END)) for role, text in zip(turns[::2], turns[1::2], strict=True)]


def test_an_environment(server, options, start_model):
    samples = draw(server, options, 8, workflow="multi_turn", environment="own_workflows:Echo")

    assert_aligned(samples, start_model)
    three = [s for s in samples if s.finish_reason == "stop"]
    assert three and all(s.outcome == 0.75 and len(s.turns) == 3 and s.facts == {"turns": 3.0} for s in three)
    for sample in three:
        roles = [role for role, _ in conversation(sample)]
        assert roles == ["user", "assistant", "user", "assistant", "user", "assistant"]
        # Each turn is closed once: by the model, or else by the template.
        assert TOKENIZER.decode(sample.tokens[: sample.turns[-1].start]).count(END) == 5
        said = [TOKENIZER.decode(sample.tokens[t.start : t.end], skip_special_tokens=True) for t in sample.turns]
        assert [content for role, content in conversation(sample) if role == "user"][1:] == [
            f"{i}:{text[:5]}".rstrip("\n") for i, text in enumerate(said[:2], 1)
        ]
        assert [t.reward for t in sample.turns] == [len(text) / 100 for text in said]
    cut = [s for s in samples if s.finish_reason == "length"]
    assert all(s.outcome is None for s in cut)


def test_tools(server, options, start_model, monkeypatch):
    """The random model calls no tool by itself, so here whatever it says is read as a call."""
    asked = calls.ToolCall("calculator", {"expression": "2+2"})
    monkeypatch.setitem(calls.CALL_FORMATS, "hermes", lambda text: (text, [asked]))
    samples = draw(server, options, 4, workflow="tools", tools=["calculator"], max_turns=3)

    assert_aligned(samples, start_model)
    for sample in samples:
        assert conversation(sample)[0][0] == "system" and conversation(sample)[0][1].startswith(
            "calculator(expression)"
        )
        if len(sample.turns) == 3:
            results = [content for role, content in conversation(sample) if "tool_response" in content]
            assert results == ["<tool_response>\n4\n</tool_response>"] * 2
            assert sample.facts == {"turns": 3.0, "tool_calls": 2.0, "tool_errors": 0.0}
        assert sample.finish_reason == "length"  # it never came to an answer without a call
    assert any(len(sample.turns) == 3 for sample in samples)


def test_an_agent_with_an_openai_client(server, options, start_model):
    samples = draw(server, options, 4, workflow="openai", agent="own_workflows:asks_twice")

    assert len(samples) == 4
    assert_aligned(samples, start_model)
    for sample in samples:
        assert [role for role, _ in conversation(sample)] == ["user", "assistant", "user", "assistant"]
        assert [content for role, content in conversation(sample) if role == "user"] == ["hi", "more?"]
        assert (sample.outcome, sample.facts["requests"]) == (1.0, 2.0)


def test_an_agent_that_blocks_and_streams(server, options, start_model):
    samples = draw(server, options, 3, workflow="openai", agent="own_workflows:blocks_and_streams")

    assert_aligned(samples, start_model)
    assert all(s.outcome is None and s.turns[-1].reward == len(s.text) for s in samples)


def test_what_would_bias_training_is_refused(server, options):
    with pytest.raises(openai.BadRequestError, match=r"temperature=0.1, but what is trained is sampled with 1"):
        draw(server, options, 1, workflow="openai", agent="own_workflows:asks_for_another_temperature")


def test_a_workflow_of_the_user(server, options, start_model):
    prompts = make_prompts([3, 5])
    samples = draw(server, options, 2, prompts, workflow="own_workflows:best_of_two")

    assert_aligned(samples, start_model)
    assert [s.group for s in samples] == [0, 0, 1, 1]
    assert all(s.tokens[s.turns[1].start - 1] == 7 and s.turn_rewards[-1] == 0.5 for s in samples)
