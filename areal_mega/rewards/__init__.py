"""Verifiers: how a response is judged against the reference answer."""

from areal_mega.rewards.verifiers import VERIFIERS, check_answers, judge

__all__ = ["VERIFIERS", "check_answers", "judge"]
