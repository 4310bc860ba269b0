"""Tasks of reasoning-gym, judged by their own ``score_answer``, with the exceptions that make it a fair reward."""

from __future__ import annotations

from functools import cache
from typing import Any

import reasoning_gym
from reasoning_gym.dataset import ProceduralDataset

from areal_mega.data.boxes import boxed
from areal_mega.data.sample import Prompt
from areal_mega.rewards.answers import conclusion
from areal_mega.rewards.score import Score

# Its verifier takes any text for right: bool("False") is True.
_COMPARED_AS_TEXT = {"game_of_life_halting"}


def procedural(response: str, prompt: Prompt) -> Score:
    r"""The score of the task's own verifier, 1 where it is fully right.

    The answer is what stands in ``<answer>``, else in the last ``\boxed{}``, else the whole response behind its
    thoughts. The metadata of the prompt is the task's, ``source_dataset`` included. Many tasks give part of the score
    to an answer that merely contains the right one, among guesses for instance; here it earns nothing.

    Raises:
        KeyError, ValueError: the metadata names no task of reasoning-gym.
    """
    said = said_in(response)
    name = prompt.metadata["source_dataset"]
    task = _dataset(name)
    if not said:
        return Score(0.0, note="no answer")
    # Some verifiers compare with tuples, which are lists once the task was stored as JSON.
    if (same := said in {answer.strip() for answer in prompt.references}) or name in _COMPARED_AS_TEXT:
        return Score(float(same))
    entry: dict[str, Any] = {"question": prompt.text, "answer": prompt.answer or None, "metadata": prompt.metadata}
    if "question" in prompt.metadata:
        entry["question"] = prompt.metadata["question"]
    try:
        value = float(task.score_answer(said, entry))
    except Exception as error:  # an answer of another kind, such as text where the task reads an integer
        return Score(0.0, note=f"{type(error).__name__}: {error}")
    if value < 1 and prompt.answer and prompt.answer in said:
        return Score(0.0, note="says more than the answer")
    return Score(min(max(value, 0.0), 1.0))


def said_in(response: str) -> str:
    """The answer in a response."""
    said = conclusion(response)
    if "<answer>" not in response and (boxes := boxed(said)):
        said = boxes[-1]
    return said.strip()


@cache
def _dataset(name: str) -> ProceduralDataset:
    return reasoning_gym.create_dataset(name)
