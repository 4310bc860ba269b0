import pytest
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from areal_mega.config.errors import UserError
from areal_mega.data.jsonl import endless_batches, read_answers, read_prompts


def test_prompts_are_put_into_the_chat_template(write, tokenizer):
    chat = [{"role": "user", "content": "two"}]
    path = write({"prompt": "one", "answer": "two", "level": 3}, {"messages": chat, "answer": ""})
    first, second = read_prompts(path, "data.train", tokenizer, 10)
    assert (first.text, first.tokens, first.answer, first.metadata) == ("U one A ", [2, 4, 3], "two", {"level": 3})
    assert second.tokens == [2, 5, 3]


def test_sft_loss_is_on_the_answer_and_its_end(write, tokenizer):
    [row] = read_answers(write({"prompt": "one", "answer": "two two"}), "data.train", tokenizer, 10)
    assert row == {"tokens": [2, 4, 3, 5, 5, 1], "loss_mask": [False] * 3 + [True] * 3}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{'prompt': 1}"], "data.jsonl:1: not JSON"),
        ([{"prompt": "one", "answer": "two"}, {"prompt": "one"}], "data.jsonl:2: field 'answer' is missing"),
        ([{"answer": "two"}], "data.jsonl:1: field 'prompt' is missing"),
        ([{"prompt": 5, "answer": "two"}], "field 'prompt' must be text, found int"),
        (["[1]"], "expected a JSON object, found list"),
        ([{"prompt": "one one one", "answer": ""}], "jsonl:1: the prompt has 5 tokens, more than rollout.max_prompt"),
        ([], "data.train="),
        (["", ""], "has no lines"),
    ],
)  # fmt: skip
def test_bad_lines_are_named(write, tokenizer, lines, message):
    with pytest.raises(UserError) as error:
        read_prompts(write(*lines), "data.train", tokenizer, 4)
    assert message in str(error.value)


def test_a_line_that_is_not_utf8_is_named(tmp_path, tokenizer):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "one", "answer": "two"}\n{"prompt": "\xe9", "answer": ""}\n')
    with pytest.raises(UserError, match=r"latin.jsonl:2: not UTF-8 \(byte 13 of the line\)"):
        read_prompts(str(path), "data.train", tokenizer, 9)


def test_without_a_chat_template_the_tokenizer_adds_its_special_tokens(write):
    words = Tokenizer(models.WordLevel({"<s>": 0, "<e>": 1, "one": 2, "two": 3}, "<e>"))
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="<e>")
    path = write({"prompt": "one", "answer": "two"})
    assert read_prompts(path, "data.train", tokenizer, 9)[0].tokens == [0, 2]
    # The answer continues the prompt: no second beginning.
    [row] = read_answers(path, "data.train", tokenizer, 9)
    assert row["tokens"][0] == 0 and 0 not in row["tokens"][1:]


def test_missing_file_names_the_option(tokenizer):
    with pytest.raises(UserError, match=r"data\.train=/no/where.jsonl: no such file"):
        read_prompts("/no/where.jsonl", "data.train", tokenizer, 4)


def test_too_long_sft_line_is_named(write, tokenizer):
    with pytest.raises(UserError, match=r"data.jsonl:1: prompt and answer have 5 tokens, more than max_tokens=4"):
        read_answers(write({"prompt": "one", "answer": "two"}), "data.train", tokenizer, 4)


@pytest.fixture
def plain(tokenizer):
    """The tokenizer without its chat template."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<e>")


@pytest.mark.parametrize("read", [read_prompts, read_answers])
def test_a_prompt_without_tokens_is_named(write, plain, read):
    path = write({"prompt": "one", "answer": "two"}, {"prompt": " ", "answer": "two"})
    with pytest.raises(UserError, match="data.jsonl:2: the prompt has no tokens"):
        read(path, "data.train", plain, 9)


def test_messages_need_a_chat_template(write, plain):
    path = write({"messages": [{"role": "user", "content": "one"}], "answer": ""})
    with pytest.raises(UserError, match="data.jsonl:1: has messages, but"):
        read_prompts(path, "data.train", plain, 9)


def test_batches_pass_over_everything_once_before_they_repeat():
    batches = endless_batches(list(range(10)), 4, shuffle=True, seed=1)
    drawn = [i for _ in range(5) for i in next(batches)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    again = endless_batches(list(range(10)), 4, shuffle=True, seed=1)
    assert drawn == [i for _ in range(5) for i in next(again)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_go_on_from_any_position(shuffle):
    """What comes next depends on the number of items drawn and on nothing else."""
    batches = endless_batches(list(range(10)), 4, shuffle, seed=1)
    drawn = [next(batches) for _ in range(12)]
    for taken in range(12):
        rest = endless_batches(list(range(10)), 4, shuffle, seed=1, start=4 * taken)
        assert [next(rest) for _ in range(taken, 12)] == drawn[taken:]
    # Also with another batch size from there on.
    flat = [item for batch in drawn for item in batch]
    other = endless_batches(list(range(10)), 5, shuffle, seed=1, start=12)
    assert [next(other) for _ in range(4)] == [flat[i : i + 5] for i in range(12, 32, 5)]
