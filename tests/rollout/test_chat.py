"""Generated ids and the pieces between them are what the template would have made of the whole conversation."""

import pytest
from rollout.templates import CHATML, TEMPLATES, THINKING, tokenizer_of

from areal_mega.config.errors import UserError
from areal_mega.rollout.chat import ChatFormat

ASKED = [{"role": "user", "content": "How much is 2+2?"}]
REPLIES = {
    "user": [{"role": "user", "content": "Are you sure?"}],
    "tools": [{"role": "tool", "content": "4"}, {"role": "tool", "content": " five"}],
}


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def whole(tokenizer, said, replies):
    messages = [*ASKED, {"role": "assistant", "content": said}, *replies]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("prefix_space", [False, True])
@pytest.mark.parametrize("replies", REPLIES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_pieces_make_the_templated_conversation(name, replies, prefix_space):
    template, end = TEMPLATES[name]
    tokenizer = tokenizer_of(template, prefix_space)
    chat = ChatFormat(tokenizer)
    text = whole(tokenizer, "It is 4.", REPLIES[replies])
    expected = ids(tokenizer, text)

    prompt = chat.prompt(ASKED)
    end_id = tokenizer.convert_tokens_to_ids(end)
    last = next(i for i in range(len(prompt), len(expected)) if expected[i] == end_id)
    generated = expected[len(prompt) : last + 1]

    assert expected[: len(prompt)] == prompt
    assert [*prompt, *generated, *chat.between(generated, REPLIES[replies])] == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_turn_the_model_did_not_end_is_closed(name):
    template, end = TEMPLATES[name]
    tokenizer = tokenizer_of(template)
    chat = ChatFormat(tokenizer)
    cut = ids(tokenizer, "It is")
    closed = [*cut, tokenizer.convert_tokens_to_ids(end)]

    piece = chat.between(cut, REPLIES["user"])
    assert piece[0] == closed[-1]
    assert [*cut, *piece] == [*closed, *chat.between(closed, REPLIES["user"])]


def test_another_end_token_stays_and_the_turn_is_closed_behind_it():
    tokenizer = tokenizer_of(CHATML)
    generated = [*ids(tokenizer, "4"), tokenizer.convert_tokens_to_ids("<|endoftext|>")]

    piece = ChatFormat(tokenizer).between(generated, REPLIES["user"])
    assert tokenizer.decode(piece) == "<|im_end|>\n<|im_start|>user\nAre you sure?<|im_end|>\n<|im_start|>assistant\n"


def test_an_end_token_further_on_is_not_taken_for_the_turns_own():
    """The reply is closed by the same token; only that of the model's turn counts."""
    tokenizer = tokenizer_of(TEMPLATES["headers"][0])
    piece = ChatFormat(tokenizer).between(ids(tokenizer, "4"), REPLIES["user"])
    assert tokenizer.decode(piece).count("<|eot|>") == 2


def test_thoughts_stay_as_they_were_generated():
    """The template would hide them from the next turn; then the next turn would not follow from what was generated."""
    tokenizer = tokenizer_of(THINKING)
    generated = ids(tokenizer, "<think>\n2, 3, 4\n</think>\n\n4<|im_end|>")

    piece = ChatFormat(tokenizer).between(generated, REPLIES["user"])
    assert tokenizer.decode(piece) == "\n<|im_start|>user\nAre you sure?<|im_end|>\n<|im_start|>assistant\n"


def test_a_reply_that_quotes_the_model_is_no_boundary():
    tokenizer = tokenizer_of(CHATML)
    chat = ChatFormat(tokenizer)
    generated = ids(tokenizer, "4<|im_end|>")
    piece = chat.between(generated, [{"role": "user", "content": "whateverthemodelsaid"}])
    assert tokenizer.decode(piece) == "\n<|im_start|>user\nwhateverthemodelsaid<|im_end|>\n<|im_start|>assistant\n"


def test_no_template_is_said():
    with pytest.raises(UserError, match="needs a chat template"):
        ChatFormat(tokenizer_of(None))


def test_a_template_that_refuses_is_quoted():
    tokenizer = tokenizer_of("{{ raise_exception('no tools here') }}")
    with pytest.raises(UserError, match="no tools here"):
        ChatFormat(tokenizer).prompt(ASKED)
