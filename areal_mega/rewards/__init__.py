"""Verifiers: how a response is judged against the reference answer."""

from areal_mega.rewards.judge import VerifierError, check_answers, judge, reward_metrics
from areal_mega.rewards.registry import VERIFIERS
from areal_mega.rewards.score import Score

__all__ = ["VERIFIERS", "Score", "VerifierError", "check_answers", "judge", "reward_metrics"]
