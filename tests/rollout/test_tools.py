"""Tools, and the calls of them in what a model wrote."""

import asyncio
import json
import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from areal_mega.config.errors import UserError
from areal_mega.config.options import TOOL_NAMES, RolloutOptions
from areal_mega.rollout.tools import TOOLS, Tool, ToolError, load_tools
from areal_mega.rollout.tools.calculator import evaluate
from areal_mega.rollout.tools.calls import ToolCall, call_format, find_calls
from areal_mega.rollout.tools.search import K1, B, Document, Index, words_of


def call(box, name, **arguments):
    return asyncio.run(box.call(name, arguments))


def test_the_tools_are_the_choices():
    assert set(TOOLS) == set(TOOL_NAMES)


@pytest.mark.parametrize(
    ("expression", "value"),
    [("12 + 34", "46"), ("(1+2)*-3", "-9"), ("7/2", "3.5"), ("6/2", "3"), ("2^10", "1024"), ("17 // 5 % 2", "1"),
     ("3×4−1 =", "11"), ("0.1+0.2", str(0.1 + 0.2))],
)  # fmt: skip
def test_arithmetic(expression, value):
    assert evaluate(expression) == value


@given(st.recursive(
    st.integers(-99, 99).map(lambda n: (f"({n})", Fraction(n))),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: (f"({t[0][0]}{t[1]}{t[2][0]})",
                   {"+": t[0][1] + t[2][1], "-": t[0][1] - t[2][1], "*": t[0][1] * t[2][1]}[t[1]])
    ), max_leaves=8,
))  # fmt: skip
def test_arithmetic_of_any_shape(case):
    text, value = case
    assert evaluate(text) == str(value)


@pytest.mark.parametrize(
    "expression",
    ["", "1/0", "9**9**9", "2**99999", "10.0**400", "__import__('os')", "a+1", "(-8)**0.5", "True+1", "1" * 1001,
     "(" * 900, "'a'*9", "[1]*9"],
)  # fmt: skip
def test_what_is_no_arithmetic_is_refused_at_once(expression):
    with pytest.raises(ToolError):
        evaluate(expression)


def test_python_runs_in_the_sandbox():
    box = load_tools(["python"], RolloutOptions())
    assert call(box, "python", code="print(6 * 7)") == ("42", True)
    assert call(box, "python", code="x = 1") == ("(no output; print what you want to see)", True)
    text, right = call(box, "python", code="print('so far')\nraise ValueError('no')")
    assert text == "so far\nerror: ValueError: no" and right


DOCUMENTS = [
    Document("Cats", "Cats purr. A cat sleeps a lot; cats hunt mice."),
    Document("Dogs", "A dog barks at cats."),
    Document("", "Mice fear the cat, the dog and the owl in the long cold night of winter."),
]


def slow_score(query, document):
    lengths = [len(d.words) for d in DOCUMENTS]
    mean, score = sum(lengths) / len(lengths), 0.0
    for word in set(words_of(query)):
        holders = sum(word in d.words for d in DOCUMENTS)
        tf = Counter(document.words)[word]
        idf = math.log(1 + (len(DOCUMENTS) - holders + 0.5) / (holders + 0.5))
        score += idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * len(document.words) / mean))
    return score


@pytest.mark.parametrize("query", ["cats", "the owl", "dog cat", "mice CATS night", "unheard of"])
def test_search_ranks_by_bm25(query):
    scored = sorted(((slow_score(query, d), -i) for i, d in enumerate(DOCUMENTS)), reverse=True)
    assert Index(DOCUMENTS).best(query) == [DOCUMENTS[-i] for score, i in scored if score > 0]


def test_search_reads_its_file(tmp_path):
    file = tmp_path / "documents.jsonl"
    file.write_text("\n".join(json.dumps({"title": d.title, "text": d.text}) for d in DOCUMENTS))
    box = load_tools(["search"], RolloutOptions(documents=str(file)))
    assert call(box, "search", query="owl") == (DOCUMENTS[2].text, True)
    assert call(box, "search", query="zebra") == ("(nothing was found)", True)

    with pytest.raises(UserError, match=r"set rollout.documents"):
        load_tools(["search"], RolloutOptions())
    file.write_text('{"title": "no text"}')
    with pytest.raises(UserError, match=r"documents.jsonl:1: expected an object with a field text"):
        load_tools(["search"], RolloutOptions(documents=str(file)))


def test_what_a_model_does_wrong_is_text_for_it():
    box = load_tools(["calculator"], RolloutOptions())
    assert call(box, "calculator", expression="1+1") == ("2", True)
    assert call(box, "calculator", expression="1+") == ("error: this is no arithmetic expression", False)
    assert call(box, "calculator", x="1") == ("error: calculator takes expression", False)
    assert call(box, "oracle") == ("error: there is no tool oracle; there are calculator", False)


double = Tool("double", "Doubles.", {"x": {"type": "number"}}, lambda x: 2 * x)


def test_a_tool_of_the_user(monkeypatch):
    monkeypatch.chdir(__file__.rpartition("/")[0])
    box = load_tools(["test_tools:double"], RolloutOptions())
    assert call(box, "double", x=4) == ("8", True)
    assert box.schemas[0]["function"]["parameters"]["required"] == ["x"]
    with pytest.raises(UserError, match=r"rollout.tools=abacus: expected a name that is known, or your own as"):
        load_tools(["abacus"], RolloutOptions())


ADD = ToolCall("add", {"a": 1})


@pytest.mark.parametrize(
    ("shape", "text", "said", "calls"),
    [
        ("hermes", 'so\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', "so", [ADD]),
        ("hermes", '<tool_call>{"name":"add","arguments":{"a":1}}</tool_call>' * 2, "", [ADD, ADD]),
        ("hermes", '<tool_call>{"name":"add","arguments":{"a":1}}', "", [ADD]),
        ("hermes", '{"name": "add"}', '{"name": "add"}', []),
        ("mistral", 'so [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]', "so", [ADD]),
        ("mistral", "none", "none", []),
        ("json", '{"name": "add", "parameters": {"a": 1}}', "", [ADD]),
        ("json", "<|python_tag|>" + '{"name": "add", "parameters": {"a": 1}}', "", [ADD]),
        ("json", "The answer is {4}.", "The answer is {4}.", []),
    ],
)
def test_calls_are_found(shape, text, said, calls):
    assert find_calls(text, shape) == (said, calls)


@pytest.mark.parametrize(
    "text", ["<tool_call>{add</tool_call>", "<tool_call>[]</tool_call>", '<tool_call>{"name": "x", "arguments": 1}']
)
def test_a_malformed_call_is_one_that_says_why(text):
    (found,) = find_calls(text, "hermes")[1]
    assert found.error


def test_the_template_names_the_shape():
    assert [call_format(t) for t in ("..<tool_call>..", "[TOOL_CALLS]", "")] == ["hermes", "mistral", "json"]
