"""Preference pairs: every shape they come in, and what is wrong with those that cannot be used."""

import pytest

from areal_mega.config.errors import UserError
from areal_mega.config.options import DataSetOptions
from areal_mega.data.micro_batches import micro_batches
from areal_mega.data.pairs import pack_pairs, read_pairs
from areal_mega.trainers.experience import share_of

END = 1


def read(path, tokenizer, **more):
    return read_pairs(path, "data.train", tokenizer, more.pop("max_tokens", 64), DataSetOptions(path), **more)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


ASKED = ["U", "one", "A"]  # as the chat template has it
SHAPES = {
    "texts": {"prompt": "one", "chosen": "two two", "rejected": "one"},
    "messages and texts": {"messages": [user("one")], "chosen": "two two", "rejected": "one"},
    "answers as messages": {"prompt": "one", "chosen": [assistant("two two")], "rejected": [assistant("one")]},
    "prompt as messages": {"prompt": [user("one")], "chosen": [assistant("two two")], "rejected": [assistant("one")]},
    "whole conversations": {
        "chosen": [user("one"), assistant("two two")], "rejected": [user("one"), assistant("one")], "score": 3,
    },
    "whole conversations beside their prompt": {
        "prompt": "not this", "chosen": [user("one"), assistant("two two")],
        "rejected": [{**user("one"), "id": 7}, assistant("one")],
    },
    "lists": {"prompt": "one", "pos_answers": ["two two"], "neg_answers": ["one"]},
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_all_shapes_are_the_same_pair(tokenizer, write, shape):
    (pair,) = read(write(SHAPES[shape]), tokenizer)
    asked, one, two = tokenizer.convert_tokens_to_ids(ASKED), *tokenizer.convert_tokens_to_ids(["one", "two"])
    assert pair.chosen == {"tokens": [*asked, two, two, END], "loss_mask": [False] * 3 + [True] * 3}
    assert pair.rejected == {"tokens": [*asked, one, END], "loss_mask": [False] * 3 + [True] * 2}


def test_dialogues_are_asked_up_to_their_last_answer(tokenizer, write):
    start = "\n\nHuman: one\n\nAssistant: two\n\nHuman: one\n\nAssistant:"
    (pair,) = read(write({"chosen": start + " two", "rejected": start + " one"}), tokenizer)
    asked = tokenizer(start)["input_ids"]  # as it is, without the chat template
    assert pair.chosen["tokens"] == [*asked, tokenizer.convert_tokens_to_ids("two"), END]
    assert sum(pair.rejected["loss_mask"]) == 2


def test_a_list_of_answers_makes_as_many_pairs(tokenizer, write):
    line = {"prompt": "one", "pos_answers": ["one", "two"], "neg_answers": ["two", "one"]}
    first, second = read(write(line), tokenizer)
    assert first.chosen == second.rejected and first.rejected == second.chosen


def test_margins_are_read_where_they_count(tokenizer, write):
    path = write({**SHAPES["texts"], "margin": 2}, {**SHAPES["texts"], "margin": 0.5})
    assert [pair.margin for pair in read(path, tokenizer)] == [0, 0]
    pairs = read(path, tokenizer, with_margin=True)
    assert pack_pairs(pairs)["margin"].tolist() == [2, 2, 0.5, 0.5]
    with pytest.raises(UserError, match=r"data.jsonl:1: field 'margin' must be a number, as use_margin=true asks"):
        read(write(SHAPES["texts"]), tokenizer, with_margin=True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            {"prompt": "one", "answer": "two"},
            r"data.jsonl:2: expected the fields chosen and rejected; .* prompt, answer",
        ),
        ({"prompt": "one", "chosen": "two", "rejected": 1}, r"data.jsonl:2: field 'chosen' must be text or a list"),
        ({"chosen": "two", "rejected": "one"}, r"data.jsonl:2: field 'prompt' is missing"),
        ({"chosen": [assistant("two")], "rejected": [assistant("one")]}, r"data.jsonl:2: field 'prompt' .* is missing"),
        ({"prompt": "one", "chosen": [user("two")], "rejected": [user("one")]}, r"data.jsonl:2: .* with one of user"),
        (
            {"chosen": [user("one"), assistant("two")], "rejected": [user("two"), assistant("one")]},
            r"data.jsonl:2: chosen and rejected answer different prompts",
        ),
        (
            {"prompt": "one", "chosen": "two", "rejected": "two"},
            r"data.jsonl:2: chosen and rejected answer are the same",
        ),
        ({"prompt": "one", "chosen": "two " * 60, "rejected": "two"}, r"data.jsonl:2: .* 64 tokens.* max_tokens=60"),
        ({"prompt": "one", "pos_answers": ["two"], "neg_answers": []}, r"data.jsonl:2: fields 'pos_answers' and"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tokenizer, write, line, said):
    with pytest.raises(UserError, match=said):
        read(write(SHAPES["texts"], line), tokenizer, max_tokens=60)


def test_unusable_pairs_are_left_out_where_that_is_allowed(tokenizer, write, capsys):
    path = write(SHAPES["texts"], {"prompt": "one", "chosen": "two", "rejected": "two"})
    assert len(read(path, tokenizer, skip_unusable=True)) == 1
    assert "1 lines left out" in capsys.readouterr().err


def pairs_of(tokenizer, write, sizes):
    lines = [{"prompt": "one", "chosen": "one " * a, "rejected": "two " * b} for a, b in sizes]
    return pack_pairs(read(write(*lines), tokenizer))


SIZES = [(1, 30), (20, 2), (3, 3), (5, 9), (30, 30), (2, 1), (7, 25), (1, 1)]


@pytest.mark.parametrize("budget", [70, 100, 1000])
def test_no_micro_batch_parts_a_pair(tokenizer, write, budget):
    batch = pairs_of(tokenizer, write, SIZES)
    parts = micro_batches(batch, budget)
    assert sorted(i for part in parts for i in part) == list(range(2 * len(SIZES)))
    for part in parts:
        assert part[1::2] == [i + 1 for i in part[::2]] and not any(i % 2 for i in part[::2])
        assert int(batch.lengths[part].sum()) <= budget
    with pytest.raises(UserError, match=r"sequence 8 of the batch and its partner have 68 tokens"):
        micro_batches(batch, 67)


def test_no_share_of_a_rank_parts_a_pair(tokenizer, write):
    batch = pairs_of(tokenizer, write, SIZES)
    shares = [share_of(batch, 1, rank, 2, seed=5) for rank in range(2)]
    seen = []
    for share in shares:
        assert share.sizes[0] % 2 == 0 and share.counts == [{**share.counts[0], "sequences": 16.0}]
        units = share.batch["unit"].tolist()
        assert units[::2] == units[1::2]
        seen += units[::2]
    assert sorted(seen) == list(range(len(SIZES))) and sum(s.sizes[0] for s in shares) == 16
