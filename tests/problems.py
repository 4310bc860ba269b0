"""Helpers of the reward tests."""

from areal_mega.data import Prompt, Sample


def problem(*answers, text="?", task="", **metadata):
    return Prompt("1", [1], text, answers[0], metadata, tuple(answers[1:]), task, "data.jsonl:1")


def sample(text, *answers, finish="stop", task="", **metadata):
    prompt = problem(*(answers or ("7",)), task=task, **metadata)
    return Sample(prompt, 0, [1, 2], [False, True], [0.0, -1.0], [-1, 0], finish, text)
