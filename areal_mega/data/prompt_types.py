r"""Prompt types: how a question becomes the text that a recipe's model was trained on.

The strings are those of the systems that published them; a missing space after a full stop is theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

from areal_mega.data.formats import ASSISTANT, USER

_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
_BOS = "<｜begin▁of▁sentence｜>"
_R1_ZERO = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it."
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the answer."
    "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>. "
)
_ORZ_TASK = (
    "You must put your answer inside <answer> </answer> tags, i.e., <answer> answer here </answer>. And your final "
    "answer will be extracted automatically by the \\boxed{} tag. This is the problem: "
)


@dataclass(frozen=True)
class PromptType:
    """before and after: what stands around the question. chat: that is the user's message in the model's template."""

    before: str = ""
    after: str = ""
    chat: bool = False

    def around(self, question: str) -> str:
        return f"{self.before}{question}{self.after}"


def _chatml(system: str, after: str = "") -> PromptType:
    """Qwen's template, written out."""
    before = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
    return PromptType(before, f"{after}<|im_end|>\n<|im_start|>assistant\n")


_R1 = PromptType(USER, f"\n{_BOXED}{ASSISTANT}<think>\n")
_QWQ = "You are a helpful and harmless assistant. "
PROMPT_TYPES: dict[str, PromptType] = {
    "chat": PromptType(chat=True),
    "plain": PromptType(),
    "boxed": PromptType(after=f"\n{_BOXED}", chat=True),
    "AReaL-boba": _R1,
    "AReaL-boba-SFT": PromptType(_BOS + _R1.before, _R1.after),
    "r1-distilled-qwen": PromptType(_BOS + _R1.before, _R1.after),
    "r1-distilled-qwen-gpqa": PromptType(
        USER,
        "\nPlease reason step-by-step and put your choice letter without any other text with \\boxed{} in the end."
        f"{ASSISTANT}<think>\n",
    ),
    "deepscaler": PromptType(
        after=" Let's think step by step and output the final answer within \\boxed{}.", chat=True
    ),
    "orz": PromptType(f"{_R1_ZERO}User: {_ORZ_TASK}", "\nAssistant: <think>\n"),
    "r1-zero": PromptType(f"{_R1_ZERO}\nUser: \n", "\nAssistant: \n"),
    "r1-zero-box": PromptType(
        f"{_R1_ZERO}\nUser: \n", "\nPlease put your final answer within \\boxed{}.\nAssistant: \n"
    ),
    "qwq": _chatml(f"{_QWQ}You are Qwen developed by Alibaba. You should think step-by-step."),
    "qwq-math": _chatml(f"{_QWQ}You should think step-by-step, and put your final answer within \\boxed{{}}"),
    "qwen-boxed": _chatml("You are a helpful assistant.", f"\n{_BOXED}"),
    "qwen25-math-cot": _chatml(_BOXED),
}


def question_of(prompt: str) -> str:
    """The question in a prompt that is templated as boba's are, without its instruction."""
    text = prompt.strip().removeprefix(_BOS).strip().removeprefix(USER)
    text = text.removesuffix("<think>").strip().removesuffix(ASSISTANT)
    return text.strip().removesuffix(_BOXED).rstrip()
