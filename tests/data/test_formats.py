"""One real line of each format, as its data set has it (shortened), and what becomes of it."""

import json

import pytest

from areal_mega.config.errors import UserError
from areal_mega.config.options import DATA_FORMATS, DataSetOptions
from areal_mega.config.options import PROMPT_TYPES as PROMPT_TYPE_NAMES
from areal_mega.data.formats import FORMATS, format_of
from areal_mega.data.jsonl import read_answers, read_prompts
from areal_mega.data.prompt_types import PROMPT_TYPES, question_of

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
BOBA = f"<｜User｜>How many?\n{BOXED}<｜Assistant｜><think>\n"
LINES = {
    "ours": {"prompt": "How many?", "answer": "2", "solutions": ["two", "2"], "task": "math", "level": 3},
    "boba": {"prompt": BOBA, "task": "math", "query_id": "q7", "solutions": ["\\boxed{2}", "\\boxed{\\frac{4}{2}}"]},
    "boba-sft": {"prompt": BOBA, "answer": "Let me see.</think> \\boxed{2}", "id": 5},
    "gsm8k": {"question": "How many?", "answer": "1+1 = <<1+1=2>>2\n#### 2"},
    "math": {"problem": "How many?", "solution": "It is \\boxed{2}.", "level": "Level 1", "unique_id": "test/1.json"},
    "dapo": {
        "data_source": "math_dapo", "prompt": [{"role": "user", "content": "How many?"}], "ability": "MATH",
        "reward_model": {"ground_truth": "2", "style": "rule-lighteval/MATH_v2"}, "extra_info": {"index": "9a"},
    },
    "orz": [{"from": "human", "value": "How many?"}, {"from": "assistant", "ground_truth": {"value": "2"}}],
    "reasoning-gym": {"question": "How many?", "answer": "2", "metadata": {"source_dataset": "chain_sum"}},
    "humaneval": {
        "task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    return 2\n",
        "test": "def check(f):\n    assert f() == 2\n", "entry_point": "f",
    },
    "gpqa": {
        "Question": "How many?", "Correct Answer": "2", "Incorrect Answer 1": "1", "Incorrect Answer 2": "3",
        "Incorrect Answer 3": "many", "Record ID": "rec1",
    },
}  # fmt: skip
TASKS = {"boba-sft": "", "reasoning-gym": "reasoning_gym", "humaneval": "code", "gpqa": "choice"}


def test_the_tables_are_the_choices():
    assert set(DATA_FORMATS) == {"auto", *FORMATS}
    assert set(PROMPT_TYPE_NAMES) == set(PROMPT_TYPES)
    assert set(LINES) | {"deepscaler"} == set(FORMATS)


@pytest.mark.parametrize("name", LINES)
def test_formats_are_known_by_their_fields(name):
    assert format_of(LINES[name]) == name
    line = FORMATS[name].read(LINES[name])
    assert line.task == TASKS.get(name, "math")
    if name not in ("boba", "boba-sft", "humaneval", "gpqa"):
        assert (line.question, line.answers[0]) == ("How many?", "2")


def test_what_the_formats_keep():
    read = {name: FORMATS[name].read(line) for name, line in LINES.items()}
    assert read["ours"].answers == ("2", "two") and read["ours"].metadata == {"level": 3}
    assert read["boba"].answers == ("\\boxed{2}", "\\boxed{\\frac{4}{2}}") and read["boba"].id == "q7"
    assert read["gsm8k"].learned == LINES["gsm8k"]["answer"] and read["math"].learned == "It is \\boxed{2}."
    assert read["dapo"].id == "9a" and read["dapo"].metadata["data_source"] == "math_dapo"
    options = read["gpqa"].metadata["choices"]
    assert sorted(options) == ["1", "2", "3", "many"] and options["ABCD".index(read["gpqa"].answers[0])] == "2"
    assert read["gpqa"].question.startswith(f"How many?\n\nA. {options[0]}\nB. {options[1]}\nC. ")
    assert read["reasoning-gym"].metadata == {"source_dataset": "chain_sum", "question": "How many?"}
    assert (
        read["humaneval"].answers == ("def f():\n    return 2\n",) and read["humaneval"].metadata["entry_point"] == "f"
    )


def test_other_forms_of_the_same():
    turns = {"0": LINES["orz"][0], "1": LINES["orz"][1]}
    assert format_of(turns) == "orz" and FORMATS["orz"].read(turns).answers == ("2",)
    scaler = {"problem": "How many?", "answer": "2", "solution": ""}
    assert FORMATS["deepscaler"].read(scaler).answers == ("2",) and FORMATS["math"].read(
        {**scaler, "answer": 2}
    ).answers == ("2",)
    assert FORMATS["gsm8k"].read({"question": "How many?", "answer": 2.0}).answers == ("2",)
    code = {"prompt": BOBA, "task": "code", "query_id": "c", "input_output": json.dumps({"inputs": [], "outputs": []})}
    assert FORMATS["boba"].read(code).answers == ("",) and "input_output" in FORMATS["boba"].read(code).metadata
    assert FORMATS["boba"].read({k: v for k, v in LINES["boba"].items() if k != "task"}).task == "math"
    chat = [{"role": "system", "content": "Count."}, {"role": "user", "content": "How many?"}]
    assert FORMATS["dapo"].read(LINES["dapo"] | {"prompt": chat}).messages == chat
    assert FORMATS["reasoning-gym"].read(LINES["reasoning-gym"] | {"answer": None}).answers == ("",)


@pytest.mark.parametrize(
    ("format", "line", "message"),
    [
        ("auto", {"answer": "2"}, ":1: field 'prompt' is missing; the line has: answer"),
        ("auto", {"prompt": "one", "solutions": "2"}, ":1: field 'solutions' must be a list of texts"),
        ("boba", {"prompt": "one", "query_id": "1"}, ":1: field 'solutions' is missing or empty"),
        ("boba", {"query_id": "1", "solutions": ["2"]}, ":1: field 'prompt' is missing"),
        ("gsm8k", {"problem": "one"}, ":1: field 'answer' is missing; the line has: problem"),
        ("math", {"problem": "one", "answer": None}, ":1: no answer: neither"),
        ("math", {"problem": "one", "solution": "Clear."}, ":1: no answer: neither"),
        ("dapo", {"prompt": "one", "reward_model": {}}, ":1: field 'prompt' must be a list of objects"),
        ("dapo", {"prompt": [{"content": "one"}], "reward_model": {}}, ":1: field 'reward_model.ground_truth' must"),
        ("dapo", {"question": "one"}, ":1: is not of the format dapo: prompt (messages)"),
        ("orz", [{"value": "one"}], ":1: expected two turns"),
        ("orz", {"problem": "one"}, ":1: expected two turns"),
        ("reasoning-gym", LINES["reasoning-gym"] | {"answer": 5}, ":1: field 'answer' must be text or null, found int"),
    ],
)  # fmt: skip
def test_bad_lines_are_named(write, tokenizer, format, line, message):
    with pytest.raises(UserError) as error:
        read_prompts(write(line), "data.train", tokenizer, 99, DataSetOptions(format=format))
    assert message in str(error.value)


def test_lines_without_an_answer_or_too_long_can_be_left_out(write, tokenizer, capsys):
    path = write(
        {"problem": "one", "answer": None}, {"problem": "one", "answer": "2"}, {"problem": "one " * 50, "answer": "2"}
    )
    [prompt] = read_prompts(path, "data.train", tokenizer, 9, skip_unusable=True)
    assert prompt.source == f"{path}:2" and prompt.id == "2"
    assert f"data.train: 2 lines left out; the first: {path}:1: no answer" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of its 1 lines can be used; the first: .*:1: no answer"):
        read_prompts(write({"problem": "one", "answer": None}), "data.train", tokenizer, 9, skip_unusable=True)


PREAMBLE = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it."
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer."
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>. "
)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("AReaL-boba", BOBA),
        ("AReaL-boba-SFT", f"<｜begin▁of▁sentence｜>{BOBA}"),
        ("r1-distilled-qwen", f"<｜begin▁of▁sentence｜>{BOBA}"),
        ("plain", "How many?"),
        ("chat", "U How many? A "),
        ("boxed", f"U How many?\n{BOXED} A "),
        ("deepscaler", "U How many? Let's think step by step and output the final answer within \\boxed{}. A "),
        (
            "orz",
            f"{PREAMBLE}User: You must put your answer inside <answer> </answer> tags, i.e., <answer> answer here "
            "</answer>. And your final answer will be extracted automatically by the \\boxed{} tag. This is the "
            "problem: How many?\nAssistant: <think>\n",
        ),
        ("r1-zero", f"{PREAMBLE}\nUser: \nHow many?\nAssistant: \n"),
        (
            "qwen25-math-cot",
            f"<|im_start|>system\n{BOXED}<|im_end|>\n<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            "qwen-boxed",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHow many?\n"
            f"{BOXED}<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("line", [{"prompt": "How many?", "answer": "2"}, LINES["boba"], LINES["dapo"]])
def test_prompt_types(write, tokenizer, name, text, line):
    [prompt] = read_prompts(write(line), "data.train", tokenizer, 999, DataSetOptions(prompt_type=name))
    assert prompt.text == text


def test_a_templated_prompt_stays_as_it_is_unless_a_type_is_named(write, tokenizer):
    [prompt] = read_prompts(write(LINES["boba"]), "data.train", tokenizer, 99)
    assert prompt.text == BOBA and prompt.solutions == ("\\boxed{\\frac{4}{2}}",)
    assert question_of(BOBA) == question_of(f"<｜begin▁of▁sentence｜>{BOBA}") == question_of("How many?") == "How many?"


def test_sft_learns_the_whole_solution(write, tokenizer):
    line = {"question": "one", "answer": "two two\n#### two"}
    [row] = read_answers(write(line), "data.train", tokenizer, 20)
    assert sum(row["loss_mask"]) == len(["two", "two", "####", "two"]) + 1


def test_a_chat_needs_a_chat_template(write, tokenizer):
    chat = [{"role": "system", "content": "one"}, {"role": "user", "content": "two"}]
    with pytest.raises(UserError, match=":1: has several messages"):
        read_prompts(write({"messages": chat, "answer": ""}), "d", tokenizer, 9, DataSetOptions(prompt_type="plain"))


def test_the_task_can_be_set(write, tokenizer):
    [prompt] = read_prompts(write({"prompt": "one", "answer": "2"}), "d", tokenizer, 9, DataSetOptions(task="choice"))
    assert prompt.task == "choice"
