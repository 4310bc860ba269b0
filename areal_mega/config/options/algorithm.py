"""Advantages and losses."""

from __future__ import annotations

from dataclasses import dataclass

from areal_mega.config.options.fields import option


@dataclass
class AlgorithmOptions:
    advantage: str = option(
        "gae",
        "What a reward is compared with. gae: the critic (PPO). grpo: the mean of its group. rloo: the mean of the "
        "others of its group. remax: the reward of a greedy response. reinforce: nothing. distill: no reward counts; "
        "log pi_teacher - log pi of each token does, with reference_path as teacher.",
        choices=("gae", "grpo", "rloo", "remax", "reinforce", "distill"),
    )
    reward_std: str = option(
        "group",
        "grpo: divide by the rewards' deviation in the group (GRPO), in the batch (Lite PPO), or not at all (Dr.GRPO).",
        choices=("group", "batch", "none"),
    )
    gamma: float = option(1.0, "Discount gamma.", minimum=0, maximum=1)
    gae_lambda: float = option(1.0, "GAE lambda.", minimum=0, maximum=1)
    length_adaptive_alpha: float | None = option(
        None, "In the place of gae_lambda 1 - 1 / (alpha * response length) (VAPO; 0.05); null: off.", above=0
    )
    critic_lambda: float | None = option(
        None, "GAE lambda of the critic's returns (VAPO: 1); null: that of the advantages.", minimum=0, maximum=1
    )
    normalize_advantages: str | None = option(
        None,
        "Mean 0 and variance 1 over all response tokens of the batch or of each group; mixed: mean of the group, "
        "variance of the batch; null: batch with gae and reinforce, else none.",
        choices=("batch", "group", "mixed", "none"),
    )
    epochs: int = option(1, "Passes over each batch of samples.", minimum=1)
    mini_batches: int = option(1, "Optimizer steps per pass.", minimum=1)
    objective: str = option(
        "clip",
        "clip: PPO's clipped objective. cispo: the clipped ratio as a constant weight of A log pi. sapo: a soft gate, "
        "(4 / tau) sigmoid(tau (ratio - 1)) A.",
        choices=("clip", "cispo", "sapo"),
    )
    ratio: str = option(
        "token",
        "pi/pi_proximal of each token, or of the sequence: their geometric mean (GSPO; clips of about 3e-4).",
        choices=("token", "sequence"),
    )
    clip_low: float = option(0.2, "Ratio clip below 1 (epsilon_low); 1: none.", above=0, maximum=1)
    clip_high: float = option(0.2, "Ratio clip above 1 (epsilon_high).", above=0)
    dual_clip: float | None = option(None, "Bound c on -c*A for negative advantages; null: off.", above=1)
    sapo_tau_positive: float = option(1.0, "sapo: tau of positive advantages.", above=0)
    sapo_tau_negative: float = option(1.05, "sapo: tau of negative advantages.", above=0)
    value_clip: float | None = option(0.2, "Clip of value changes (epsilon_value); null: off.", above=0)
    value_norm: float | None = option(
        None,
        "The critic learns returns less their running mean, over their running deviation; this is the decay beta of "
        "both (0.99995); null: off.",
        minimum=0,
        below=1,
    )
    positive_nll_coef: float = option(
        0.0, "Weight mu of the negative log-likelihood of right responses (VAPO: 0.1).", minimum=0
    )
    entropy_coef: float = option(0.0, "Weight of the entropy bonus.", minimum=0)
    kl_coef: float = option(0.0, "Weight beta of the KL to the reference model; needs use_reference.", minimum=0)
    kl_in: str = option(
        "loss", "Where the KL counts: reward (subtracted per token) or loss.", choices=("reward", "loss")
    )
    kl_estimator: str = option("k3", "KL estimator (Schulman, 2020).", choices=("k1", "k2", "k3"))
    kl_unbiased: bool = option(
        False, "kl_in=loss: times the ratio pi/pi_proximal, so that the gradient is the KL's own off-policy, too."
    )
    kl_target: float | None = option(
        None, "Nats of KL per response that kl_coef is adapted to, starting from its value; null: fixed.", above=0
    )
    kl_horizon: int = option(10_000, "kl_target: responses in which kl_coef can change by a fifth.", minimum=1)
    use_reference: bool = option(False, "Keep a frozen model beside the policy, for the KL or as teacher.")
    reference_path: str | None = option(
        None, "Hugging Face folder of that model, which has the same tokens; null: model.path, the policy as it begins."
    )
    proximal: str = option(
        "recomputed",
        "The policy that the ratio is taken to. recomputed: as it was before the step, by a forward pass. "
        "interpolated: an estimate of that by each token's age, without the pass (A-3PO). behavior: the one that "
        "sampled (PPO as it is for fresh samples).",
        choices=("recomputed", "interpolated", "behavior"),
    )
    behavior: str | None = option(
        None,
        "Weight the loss by w = pi_proximal/pi_behavior of each token, of the sequence (the product) or of the "
        "sequence's mean (geometric). null: none; where rollout.mode is not sync, token and at most 5 (decoupled PPO).",
        choices=("none", "token", "sequence", "sequence-mean"),
    )
    behavior_mode: str = option(
        "truncate",
        "truncate: min(w, behavior_high) (TIS). mask: w inside the limits, 0 outside (IcePop, MIS). reject: 1 inside, "
        "0 outside.",
        choices=("truncate", "mask", "reject"),
    )
    behavior_low: float = option(0.0, "Lower limit of w, for mask and reject.", minimum=0)
    behavior_high: float | None = option(None, "Upper limit of w; null: none.", above=0)
    behavior_cap: float | None = option(
        None, "Short for behavior=token, behavior_mode=truncate and this as behavior_high; null: off.", above=0
    )
    m2_threshold: float | None = option(
        None,
        "Leave out tokens of the largest log(pi_proximal/pi_behavior)^2 until its mean is this (M2PO: 0.04); "
        "null: none.",
        above=0,
    )
    mask_truncated: bool = option(
        False, "Responses cut at max_new_tokens count in their group's mean, but not in the loss (DAPO's filter)."
    )
    overlong_buffer: float | None = option(
        None,
        "Part of rollout.max_new_tokens, at its end, in which a response's reward falls linearly by overlong_penalty "
        "(DAPO: 0.2); null: none.",
        above=0,
        maximum=1,
    )
    overlong_penalty: float = option(1.0, "What a response of rollout.max_new_tokens loses.", above=0)
    aggregation: str = option(
        "token-mean",
        "How tokens become one loss. token-mean: the mean of all (DAPO). sequence-mean: of each sequence's mean "
        "(GRPO). sequence-sum: of each sequence's sum. constant: of its sum over aggregation_length (Dr.GRPO).",
        choices=("token-mean", "sequence-mean", "sequence-sum", "constant"),
    )
    aggregation_length: int | None = option(
        None, "constant: tokens to divide a sequence's sum by, mostly ${rollout.max_new_tokens}.", minimum=1
    )

    @property
    def has_critic(self) -> bool:
        """Whether a critic is trained."""
        return self.advantage == "gae"

    @property
    def advantage_level(self) -> str:
        """What advantages are normalised over: normalize_advantages, or what null means."""
        return self.normalize_advantages or ("batch" if self.advantage in ("gae", "reinforce") else "none")
