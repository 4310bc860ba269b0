"""Requests of an OpenAI client as token ids: what was generated is never tokenized again and counts once."""

from rollout.templates import CHATML, tokenizer_of

from areal_mega.data import Prompt
from areal_mega.rollout.chat import ChatFormat
from areal_mega.rollout.client import Generation
from areal_mega.rollout.conversations import Conversations

TOKENIZER = tokenizer_of(CHATML)
PROMPT = Prompt("1", [1], "?", "4")
USER = {"role": "user", "content": "2+2?"}


def said(text, version=3):
    tokens = TOKENIZER(text + "<|im_end|>", add_special_tokens=False)["input_ids"]
    return Generation(tokens, [-0.5] * len(tokens), [version] * len(tokens), "stop")


def ask(conversations, messages, answer, message=None):
    before, new, tokens = conversations.find(messages, [])
    message = message or {"role": "assistant", "content": answer}
    conversations.add(before, new, said(answer), answer, [*messages, message], [])
    return tokens, [*messages, message]


def text_of(tokens):
    return TOKENIZER.decode(tokens)


def test_a_conversation_that_is_gone_on_with_is_one_sample():
    conversations = Conversations(ChatFormat(TOKENIZER))
    _, messages = ask(conversations, [USER], "4")
    # Clients add fields of their own when they send an answer back.
    messages[-1] = messages[-1] | {"refusal": None, "audio": None, "tool_calls": None}
    tokens, messages = ask(conversations, [*messages, {"role": "user", "content": "sure?"}], "yes")

    (sample,) = conversations.samples(PROMPT, outcome=0.5)
    assert sample.tokens[: len(tokens)] == tokens
    assert text_of(sample.tokens) + "\n" == TOKENIZER.apply_chat_template(messages, tokenize=False)
    generated = [t for t, m in zip(sample.tokens, sample.loss_mask, strict=True) if m]
    assert text_of(generated) == "4<|im_end|>yes<|im_end|>"
    assert all((v == 3) == m for v, m in zip(sample.versions, sample.loss_mask, strict=True))
    assert [text_of(sample.tokens[t.start : t.end]) for t in sample.turns] == ["4<|im_end|>", "yes<|im_end|>"]
    assert (sample.text, sample.outcome) == ("yes", 0.5)


def test_the_generated_ids_are_kept_however_the_text_would_be_tokenized():
    conversations = Conversations(ChatFormat(TOKENIZER))
    before, new, tokens = conversations.find([USER], [])
    odd = Generation([5, 5, 7, TOKENIZER.convert_tokens_to_ids("<|im_end|>")], [0.0] * 4, [0] * 4, "stop")
    messages = [USER, {"role": "assistant", "content": "whatever the client was shown"}]
    conversations.add(before, new, odd, "", messages, [])

    _, _, again = conversations.find([*messages, USER], [])
    assert again[: len(tokens) + 4] == [*tokens, *odd.tokens]


def test_two_ways_on_are_two_samples_and_their_beginning_counts_once():
    conversations = Conversations(ChatFormat(TOKENIZER))
    _, messages = ask(conversations, [USER], "4")
    ask(conversations, [*messages, {"role": "user", "content": "a?"}], "yes")
    ask(conversations, [*messages, {"role": "user", "content": "b?"}], "no")

    first, second = conversations.samples(PROMPT, None)
    learned = [text_of([t for t, m in zip(s.tokens, s.loss_mask, strict=True) if m]) for s in (first, second)]
    assert learned == ["4<|im_end|>yes<|im_end|>", "no<|im_end|>"]
    assert "4<|im_end|>" in text_of(second.tokens)


def test_an_edited_history_is_another_conversation():
    conversations = Conversations(ChatFormat(TOKENIZER))
    ask(conversations, [USER], "4")
    ask(conversations, [USER, {"role": "assistant", "content": "5"}, USER], "4")

    first, second = conversations.samples(PROMPT, None)
    assert [sum(s.loss_mask) for s in (first, second)] == [2, 2]
    assert "5<|im_end|>" in text_of(second.tokens)


def test_tool_calls_are_part_of_what_is_compared():
    def with_call(arguments):
        calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}]
        return {"role": "assistant", "content": None, "tool_calls": calls}

    conversations = Conversations(ChatFormat(TOKENIZER))
    result = {"role": "tool", "tool_call_id": "c1", "content": "4"}
    ask(conversations, [USER], "<tool_call>x</tool_call>", with_call('{"a": 1}'))

    assert conversations.find([USER, with_call('{"a": 1}'), result], [])[0] is not None
    before, _, tokens = conversations.find([USER, with_call('{"a": 2}'), result], [])
    assert before is None and '"a": 2' in text_of(tokens)
