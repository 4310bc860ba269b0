"""Every option of every program, typed, with its default and its help text.

An option is written once, here. Hydra reads the dataclasses, ``--help`` prints the help texts, and
`areal_mega.config.checks` stops runs whose options contradict each other. Names are the field's
words; the symbol a paper uses stands in the help text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with a default, a help text and, where it has them, its allowed values.

    minimum and maximum belong to the allowed values themselves, above and below do not.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    metadata = {"help": help, "choices": choices, **bounds}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def group(cls: type, help: str) -> Any:
    """A dataclass field that holds a group of options."""
    return field(default_factory=cls, metadata={"help": help})


@dataclass
class ModelOptions:
    path: str = option(MISSING, "Hugging Face folder: config.json, tokenizer, *.safetensors.")
    dtype: str = option(
        "float32",
        "Parameter type in training and generation.",
        choices=("float32", "bfloat16"),
    )


@dataclass
class OptimizerOptions:
    lr: float = option(1e-5, "Peak learning rate.", minimum=0)
    min_lr_ratio: float = option(1.0, "Final learning rate as a fraction of lr.", minimum=0, maximum=1)
    schedule: str = option(
        "constant",
        "Decay after warm-up.",
        choices=("constant", "linear", "cosine"),
    )
    warmup_steps: int = option(0, "Optimizer steps of linear warm-up from 0 to lr.", minimum=0)
    weight_decay: float = option(0.0, "AdamW weight decay; never applied to norms and biases.", minimum=0)
    beta1: float = option(0.9, "Adam beta_1.", minimum=0, below=1)
    beta2: float = option(0.95, "Adam beta_2.", minimum=0, below=1)
    eps: float = option(1e-8, "Adam epsilon.", above=0)
    clip_grad: float = option(1.0, "Largest global gradient norm; 0 switches clipping off.", minimum=0)


@dataclass
class ParallelOptions:
    tensor: int = option(1, "Tensor-parallel size (TP).", minimum=1)
    pipeline: int = option(
        1, "Pipeline-parallel size (PP). The data-parallel size DP is ranks / (TP * PP * CP).", minimum=1
    )
    virtual_pipeline: int = option(1, "Model chunks of each pipeline stage (VPP); above 1 interleaves them.", minimum=1)
    context: int = option(1, "Context-parallel size (CP): cuts every sequence.", minimum=1)
    expert: int = option(1, "Expert-parallel size (EP), over ranks of DP, CP and TP.", minimum=1)
    expert_tensor: int | None = option(
        None, "Tensor-parallel size of the experts (ETP); null: tensor. 1 is mostly best.", minimum=1
    )
    sequence: bool = option(
        False, "Cut activations between layers over TP; MoE and DeepSeek models with tensor above 1 need it."
    )
    overlap_grad_reduce: bool = option(False, "Reduce gradients over DP while backward still runs, in buckets.")
    overlap_param_gather: bool = option(
        False, "Gather updated weights over DP while the next forward runs; needs overlap_grad_reduce."
    )
    bucket_size: int = option(40_000_000, "Parameters in a bucket, with overlap.", minimum=1)
    ranks: int | None = option(
        None, "GPUs that the layout is for, and the only number it may be started on; null: any.", minimum=1
    )


@dataclass
class RecomputeOptions:
    mode: str = option(
        "none",
        "Compute activations again in backward, for memory. full: whole layers. selective: the parts in modules.",
        choices=("none", "selective", "full"),
    )
    modules: list[str] = option(
        ["core_attn"], "selective: of core_attn, mlp, moe, shared_experts, moe_act, mla_up_proj, layernorm."
    )
    method: str = option(
        "uniform",
        "full: uniform keeps the input of every so many layers, block recomputes so many layers of a stage.",
        choices=("uniform", "block"),
    )
    layers: int = option(1, "full: how many layers.", minimum=1)


@dataclass
class OffloadOptions:
    optimizer: bool = option(False, "Keep the optimizer's states in host memory, but for the moment of its step.")
    reference: bool = option(False, "Keep the reference model's weights in host memory while it does not compute.")


@dataclass
class MoEOptions:
    balance_coef: float = option(
        0.0, "Weight of the load-balance loss of the routers, E * sum_e f_e P_e on average over tokens.", minimum=0
    )
    bias_update_rate: float = option(
        0.0, "Step of DeepSeek-V3's expert bias towards balance after every optimizer step; 0 leaves it.", minimum=0
    )
    replay: bool = option(
        False, "Train with the experts that the engine chose for each token (router replay), where batches have them."
    )


@dataclass
class PolicyOptions:
    parallel: ParallelOptions = group(ParallelOptions, "Megatron layout of policy, critic and reference.")
    optimizer: OptimizerOptions = group(OptimizerOptions, "The policy's optimizer.")
    max_tokens_per_micro_batch: int = option(
        8192, "Token budget of one micro-batch; a longer single sequence is an error.", minimum=1
    )
    logprob_workspace_mb: int = option(
        0, "MiB of logits that exist at the same time in the log-prob head; 0: 16 on a CPU, 1024 on a GPU.", minimum=0
    )
    recompute: RecomputeOptions = group(RecomputeOptions, "Memory for time.")
    offload: OffloadOptions = group(OffloadOptions, "GPU memory for host memory.")
    moe: MoEOptions = group(MoEOptions, "Mixture of experts.")
    megatron: dict[str, Any] = option({}, "Fields of Megatron's TransformerConfig, passed on as they are.")


@dataclass
class CriticOptions:
    path: str | None = option(None, "Hugging Face folder the critic's body starts from; null: model.path.")
    optimizer: OptimizerOptions = group(OptimizerOptions, "The critic's optimizer.")
    warmup_steps: int = option(0, "First steps in which only the critic is trained.", minimum=0)


WORKFLOW_NAMES = ("single_turn", "multi_turn", "tools", "openai")
TOOL_NAMES = ("calculator", "python", "search")


@dataclass
class SelectionOptions:
    """Which groups are trained on. What is left out is replaced by more, and counted."""

    mixed: bool = option(
        False,
        "Only groups whose samples had different outcomes: the others have no advantage (DAPO's dynamic sampling).",
    )
    min_success: float = option(0.0, "Only groups with at least this mean outcome.", minimum=0, maximum=1)
    max_success: float = option(1.0, "Only groups with at most this mean outcome.", minimum=0, maximum=1)
    oversample: float = option(
        1.0, "Start so many groups for each of a batch, and cut the slowest when the batch is full.", minimum=1
    )
    max_draws: float = option(
        10.0,
        "Prompts drawn for one batch, as a multiple of its size, before the run stops for want of groups.",
        above=1,
    )


@dataclass
class CurriculumStageOptions:
    """A stretch of the run (data.curriculum)."""

    prompts: int | None = option(None, "How many prompts the stage lasts; null, for the last: to the end.", minimum=1)
    min_difficulty: float | None = option(None, "Only prompts with at least this metadata.difficulty.")
    max_difficulty: float | None = option(None, "Only prompts with at most this metadata.difficulty.")
    max_new_tokens: int | None = option(None, "Longest response; null: rollout.max_new_tokens.", minimum=1)


@dataclass
class RolloutOptions:
    mode: str = option(
        "sync",
        "sync: generate, then train. one-step: generate the next batch meanwhile. async: generate all the time, "
        "at most max_staleness batches ahead.",
        choices=("sync", "one-step", "async"),
    )
    max_staleness: int = option(
        4, "async: versions that a sample's first token may be old when trained on (eta).", minimum=1
    )
    max_running: int | None = option(
        None, "Groups under way at the same time; null: as many as the mode allows.", minimum=1
    )
    selection: SelectionOptions = group(SelectionOptions, "Which groups are trained on.")
    prompts_per_step: int = option(32, "Prompts drawn for each training step.", minimum=1)
    samples_per_prompt: int = option(8, "Samples of each prompt: the group size G.", minimum=1)
    max_prompt_tokens: int = option(512, "Longest prompt; a longer one stops the run, naming its line.", minimum=1)
    max_new_tokens: int = option(
        512, "Longest response, or turn of one; max_prompt_tokens and this together bound a whole sample.", minimum=1
    )
    temperature: float = option(1.0, "Sampling temperature; the trainer's log-probs use the same.", above=0)
    top_p: float = option(1.0, "Nucleus sampling in training; must be 1 (see the check).")
    top_k: int = option(-1, "Top-k sampling in training; must be -1 (see the check).")
    stop: list[str] = option([], "Strings that end a response, beside the end-of-sequence token.")
    engines: int = option(1, "SGLang engines; requests are divided over them.", minimum=1)
    tensor: int = option(1, "Tensor-parallel size of each SGLang engine.", minimum=1)
    expert: int = option(1, "Expert-parallel size of each SGLang engine; divides tensor.", minimum=1)
    port: int = option(0, "Port of the engine; 0 takes a free one.", minimum=0, maximum=65535)
    start_timeout: float = option(300.0, "Seconds the engine may take to answer after its start.", above=0)
    request_timeout: float = option(600.0, "Seconds one generation request may take.", above=0)
    threads: int = option(1, "CPU threads of each engine process.", minimum=1)
    workflow: str = option(
        "single_turn",
        f"How a prompt becomes samples (docs/rollout.md): {', '.join(WORKFLOW_NAMES)}, or your own as "
        "package.module:function.",
    )
    max_turns: int = option(8, "multi_turn, tools: most turns of the model in a sample.", minimum=1)
    environment: str | None = option(None, "multi_turn: what the model talks with, as package.module:Class.")
    tools: list[str] = option([], f"tools: of {', '.join(TOOL_NAMES)}, or your own as package.module:NAME.")
    documents: str | None = option(None, "The tool search: JSONL file of what it finds, a text (and title) a line.")
    agent: str | None = option(None, "openai: the agent, as package.module:function.")
    engine_wait: float = option(
        300.0, "Seconds a request waits for an engine to come back when none is alive.", above=0
    )
    sglang: dict[str, Any] = option(
        {},
        "Fields of SGLang's ServerArgs, passed on as they are. On a GPU, which the trainers share, "
        "mem_fraction_static is 0.3 unless set here.",
    )


@dataclass
class ReshardingOptions:
    transport: str = option(
        "colocated",
        "colocated: the engines are on the trainers' devices. disaggregated: on devices of their own, behind the "
        "trainers' in the same machine.",
        choices=("colocated", "disaggregated"),
    )
    buffer_mb: int = option(
        1024, "MiB of the buffer of each engine rank; a larger share goes in chunks, through its halves.", minimum=1
    )
    verify: str = option(
        "first",
        "Which updates are followed by a comparison of checksums of every tensor on both sides.",
        choices=("always", "first", "never"),
    )
    restarts: int = option(2, "Times in a row that an engine lost in an update is started again.", minimum=0)


@dataclass
class AlgorithmOptions:
    advantage: str = option(
        "gae",
        "What a reward is compared with. gae: the critic (PPO). grpo: the mean of its group. rloo: the mean of the "
        "others of its group. remax: the reward of a greedy response. reinforce: nothing.",
        choices=("gae", "grpo", "rloo", "remax", "reinforce"),
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
    use_reference: bool = option(False, "Keep a frozen copy of the starting model as KL reference.")
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


DATA_FORMATS = (
    "auto", "ours", "boba", "boba-sft", "gsm8k", "math", "deepscaler", "dapo", "orz", "reasoning-gym", "humaneval",
    "gpqa",
)  # fmt: skip
PROMPT_TYPES = (
    "chat", "plain", "boxed", "AReaL-boba", "AReaL-boba-SFT", "r1-distilled-qwen", "r1-distilled-qwen-gpqa",
    "deepscaler", "orz", "r1-zero", "r1-zero-box", "qwq", "qwq-math", "qwen-boxed", "qwen25-math-cot",
)  # fmt: skip


@dataclass
class DataSetOptions:
    """One of several training sets (data.mix)."""

    path: str = option(MISSING, "As data.train.")
    weight: float = option(1.0, "Prompts of this set for each prompt of data.train with weight 1.", above=0)
    format: str = option("auto", "As data.format.", choices=DATA_FORMATS)
    prompt_type: str | None = option(None, "As data.prompt_type.", choices=PROMPT_TYPES)
    task: str | None = option(None, "As data.task.")


@dataclass
class DataOptions:
    train: str = option(
        MISSING,
        "Training prompts: a .jsonl, .json or .parquet file, a folder of them, a folder that `datasets` saved, or "
        "hf://datasets/OWNER/NAME[@REVISION]/FILE.",
    )
    validation: str | None = option(None, "Held-out prompts, as data.train; null: no evaluation.")
    shuffle: bool = option(True, "Shuffle the training prompts anew for each pass.")
    format: str = option("auto", "What a line looks like (docs/data.md); auto: its fields say.", choices=DATA_FORMATS)
    prompt_type: str | None = option(
        None,
        "How a question becomes a prompt (docs/data.md); null: the model's chat template, and prompts that are "
        "templated already stay as they are.",
        choices=PROMPT_TYPES,
    )
    task: str | None = option(None, "Task of every line, which reward.name=task judges by; null: the line's own.")
    unusable: str = option(
        "stop",
        "What to do with a line that is too long or whose own answer gets no full reward; skip counts and says so.",
        choices=("stop", "skip"),
    )
    weight: float = option(1.0, "Weight of data.train beside data.mix.", above=0)
    curriculum: list[CurriculumStageOptions] = option(
        [], "Stages by difficulty and length, [{prompts: 6400, max_difficulty: 2, max_new_tokens: 256}, {}]."
    )
    mix: list[DataSetOptions] = option([], "More training sets, [{path: FILE, weight: 0.5, ...}] (docs/data.md).")


VERIFIER_NAMES = (
    "exact_match", "final_number", "math", "choice", "code", "reasoning_gym", "http",
    "think_format", "answer_format", "think_answer_format", "boxed_format",
)  # fmt: skip


@dataclass
class HttpOptions:
    url: str | None = option(None, "Address the verifier http sends responses to (docs/rewards.md).")
    timeout: float = option(30.0, "Seconds one request may take.", above=0)
    attempts: int = option(3, "Requests for one score before it counts as failed.", minimum=1)
    concurrency: int = option(64, "Requests at the same time.", minimum=1)


@dataclass
class RewardOptions:
    name: str = option(
        "exact_match",
        f"Verifier of the answer: {', '.join(VERIFIER_NAMES)}, your own as package.module:function, or task: the one "
        "the problem's task names.",
    )
    scale: float = option(1.0, "Reward of a right answer.")
    wrong: float = option(0.0, "Reward of a wrong answer.")
    truncated: float | None = option(None, "Reward of a response cut at max_new_tokens; null: judge it.")
    require: list[str] = option([], "Verifiers that must say 1 too, or the answer is wrong: [think_answer_format].")
    extra: dict[str, float] = option({}, "More verifiers, whose scores times these weights are added to the reward.")
    workers: int = option(2, "Processes that judge answers.", minimum=1)
    time_limit: float | None = option(
        None, "Seconds an answer may take to judge, then it is wrong; null: the verifier's own limit.", above=0
    )
    http: HttpOptions = group(HttpOptions, "The server of the verifier http.")


@dataclass
class EvaluationOptions:
    every: int = option(0, "Evaluate each so many steps; 0: only before and after.", minimum=0)
    keep_best: bool = option(
        False, "Keep the model of the evaluation with the highest accuracy, in the run directory's best/."
    )
    temperature: float = option(0.0, "Sampling temperature of evaluation; 0 is greedy.", minimum=0)
    samples: int = option(1, "Samples of each held-out prompt; accuracy is their mean.", minimum=1)
    show: int = option(8, "Sampled answers kept before and after, for the report.", minimum=0)


@dataclass
class RuntimeOptions:
    device: str = option("auto", "auto: cuda where there is a GPU.", choices=("auto", "cpu", "cuda"))
    threads: int = option(1, "CPU threads of each trainer rank.", minimum=1)
    timeout: float = option(600.0, "Seconds a collective may take before the run is stopped.", above=0)


@dataclass
class TelemetryOptions:
    progress: bool = option(True, "Live display; without a terminal one line a step.")
    tensorboard: bool = option(False, "Also write TensorBoard events.")
    plot: bool = option(True, "Draw the run's curves as PNG at the end.")


@dataclass
class CheckpointOptions:
    every: int = option(0, "Save a training checkpoint each so many steps, and at the end; 0: none.", minimum=0)
    keep: int = option(2, "Newest checkpoints that are kept.", minimum=1)
    skip_damaged: bool = option(
        False, "Resume from the newest whole checkpoint when newer ones are damaged; false: a damaged one is an error."
    )


@dataclass
class CommonOptions:
    experiment: str = option(MISSING, "Name of the recipe; set by +experiment=NAME.")
    description: str = option("", "One line about the recipe, shown by --list.")
    seed: int = option(1, "Seed of data order, sampling and initialisation.")
    output: str = option("outputs", "Folder in which run directories are made.")
    run_name: str | None = option(None, "Name of the run directory; null: experiment and time.")
    resume: str | None = option(
        None,
        "Go on with a run that ended early, in its own directory. latest: run_name, or the run started last. A path: "
        "a run directory or one of its checkpoints. null: a new run.",
    )
    save: bool = option(True, "Save the trained model in Hugging Face format.")
    dry_run: bool = option(
        False, "Check the options, print what policy.parallel.ranks would hold and send, and leave (docs/recipes.md)."
    )
    stand_ins: str | None = option(
        None,
        "Folder of stand-ins, which take the place of the model and all data sets: a tiny random model of the same "
        "family, sums in the same formats (+scale=smoke). null: none.",
    )
    checkpoint: CheckpointOptions = group(CheckpointOptions, "Checkpoints to resume from.")
    model: ModelOptions = group(ModelOptions, "The model.")
    policy: PolicyOptions = group(PolicyOptions, "Megatron: layout, optimizer, token budget.")
    data: DataOptions = group(DataOptions, "Data sets.")
    runtime: RuntimeOptions = group(RuntimeOptions, "Device, threads, time limits.")
    telemetry: TelemetryOptions = group(TelemetryOptions, "What the run shows and writes.")


@dataclass
class PPOOptions(CommonOptions):
    """Options of tools/train_ppo.py."""

    program: str = option("ppo", "The program the recipe is for.", choices=("ppo",))
    steps: int = option(100, "Training steps: each is one batch of samples.", minimum=0)
    critic: CriticOptions = group(CriticOptions, "The critic (algorithm.advantage=gae).")
    rollout: RolloutOptions = group(RolloutOptions, "Generation with SGLang.")
    resharding: ReshardingOptions = group(ReshardingOptions, "New weights for the engines.")
    algorithm: AlgorithmOptions = group(AlgorithmOptions, "Advantages and losses.")
    reward: RewardOptions = group(RewardOptions, "How answers are judged.")
    evaluation: EvaluationOptions = group(EvaluationOptions, "Accuracy on held-out prompts.")

    @property
    def samples_per_step(self) -> int:
        """Samples of each training step."""
        return self.rollout.prompts_per_step * self.rollout.samples_per_prompt

    @property
    def staleness(self) -> int:
        """Versions a sample may be old when it is trained on (eta)."""
        return {"sync": 0, "one-step": 1, "async": self.rollout.max_staleness}[self.rollout.mode]

    @property
    def critic_updates(self) -> int:
        """Optimizer steps of the critic in the whole run."""
        return self.steps * self.algorithm.epochs * self.algorithm.mini_batches

    @property
    def policy_updates(self) -> int:
        """Optimizer steps of the policy in the whole run: it rests while the critic warms up."""
        return max(0, self.steps - self.critic.warmup_steps) * self.algorithm.epochs * self.algorithm.mini_batches


@dataclass
class SFTOptions(CommonOptions):
    """Options of tools/train_sft.py."""

    program: str = option("sft", "The program the recipe is for.", choices=("sft",))
    steps: int = option(100, "Optimizer steps.", minimum=1)
    sequences_per_step: int = option(64, "Sequences of each optimizer step, over all ranks.", minimum=1)
    max_tokens: int = option(2048, "Longest prompt plus answer; a longer one stops the run.", minimum=2)


@dataclass
class EvaluationDataOptions:
    folder: str = option("data", "Folder where the files of benchmarks are looked for first; then the Hub is asked.")
    format: str = option("auto", "As in training, for files that are no known benchmark.", choices=DATA_FORMATS)
    prompt_type: str | None = option(
        None, "How a question becomes a prompt (docs/data.md); null: as each benchmark has it.", choices=PROMPT_TYPES
    )
    problems: int | None = option(
        None, "Problems of each benchmark, from its beginning; null: all, 100 of those that are made.", minimum=1
    )
    unusable: str = option(
        "stop",
        "What to do with a line that is too long or whose own answer gets no full reward; skip counts and says so.",
        choices=("stop", "skip"),
    )


@dataclass
class EvaluationRolloutOptions(RolloutOptions):
    """As in training, with other defaults."""

    prompts_per_step: int = option(64, "Problems under way at the same time, and kept together.", minimum=1)
    samples_per_prompt: int = option(8, "Answers to each problem: n.", minimum=1)
    max_prompt_tokens: int = option(2048, "Longest prompt.", minimum=1)
    max_new_tokens: int = option(32768, "Longest answer.", minimum=1)
    temperature: float = option(0.6, "Sampling temperature; 0 is greedy.", minimum=0)
    top_p: float = option(0.95, "Nucleus sampling; 1: off.", above=0, maximum=1)
    top_k: int = option(-1, "Top-k sampling; -1: off.")


@dataclass
class EvaluationRewardOptions(RewardOptions):
    """As in training, where only the verifiers matter here, and what they need."""

    name: str = option(
        "task",
        f"Verifier of files that are no known benchmark: {', '.join(VERIFIER_NAMES)}, your own as "
        "package.module:function, or task: the one the problem's task names.",
    )


@dataclass
class EvaluateOptions:
    """Options of tools/evaluate.py."""

    benchmarks: list[str] = option(
        [], "What to evaluate: names (--list), reasoning-gym:TASK, or files in any of the formats of docs/data.md."
    )
    output: str | None = option(
        None, "Folder of answers and results, where an evaluation goes on; null: outputs/evaluation/MODEL."
    )
    pass_at: list[int] | None = option(None, "The k of pass@k and majority@k; null: 1, 2, 4, ... and n.")
    confidence: float = option(0.95, "Of the interval around pass@1.", above=0, below=1)
    seed: int = option(1, "Seed of sampling, and of problems that are made.")
    model: ModelOptions = group(ModelOptions, "The model.")
    data: EvaluationDataOptions = group(EvaluationDataOptions, "Problems.")
    rollout: EvaluationRolloutOptions = group(EvaluationRolloutOptions, "Generation with SGLang.")
    reward: EvaluationRewardOptions = group(EvaluationRewardOptions, "How answers are judged.")
    runtime: RuntimeOptions = group(RuntimeOptions, "Device.")
