import json
import re
from pathlib import Path

import pytest

from areal_mega.config.checks import check
from areal_mega.config.command_line import algorithms, parse
from areal_mega.config.errors import UserError

IN_REWARD = "algorithm.kl_in=reward"
KL = ["algorithm.use_reference=true", "algorithm.kl_coef=1"]
CRITIC_FREE = ["algorithm.advantage=grpo", "critic.warmup_steps=0"]
HIGH = "algorithm.behavior_high=1.5"


@pytest.fixture
def model(tmp_path):
    config = {
        "max_position_embeddings": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 12, "num_hidden_layers": 4,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    return f"model.path={tmp_path}"


def problems(model, overrides, ranks=2, cuda=False, program="ppo"):
    name = "quickstart" if program == "ppo" else f"quickstart-{program}"
    options = parse(program, [f"+experiment={name}", model, *overrides])
    with pytest.raises(UserError) as error:
        check(options, ranks, cuda)
    return str(error.value)


@pytest.mark.parametrize("name", ["quickstart", "quickstart-grpo"])
def test_quickstart_options_pass(model, name):
    check(parse("ppo", [f"+experiment={name}", model]), ranks=2, cuda=False)


@pytest.mark.parametrize("name", algorithms())
def test_every_algorithm_passes_on_the_quickstart(model, name):
    needed = ["algorithm.reference_path=teacher"] if name == "distill" else []
    options = parse("ppo", ["+experiment=quickstart", f"+algorithm={name}", model, "steps=56", *needed])
    check(options, ranks=2, cuda=False)


@pytest.mark.parametrize(
    ("overrides", "named", "way_out"),
    [
        (["algorithm.kl_coef=0.1"], "algorithm.kl_coef", "algorithm.use_reference=true"),
        (["rollout.prompts_per_step=3", "rollout.samples_per_prompt=3"], "algorithm.mini_batches", "change"),
        (["evaluation.keep_best=true", "evaluation.every=0"], "evaluation.keep_best", "evaluation.every"),
        (["policy.parallel.ranks=128"], "policy.parallel.ranks=128", "policy.parallel.ranks=null"),
        (["rollout.tensor=4"], "rollout.tensor=4", "start more ranks"),
        (["rollout.max_new_tokens=300"], "rollout.max_new_tokens", "context of 256"),
        (["policy.max_tokens_per_micro_batch=32"], "policy.max_tokens_per_micro_batch=32", "at least 64"),
        (["rollout.top_p=0.9"], "rollout.top_p=0.9", "top_p=1"),
        (["rollout.top_k=20"], "rollout.top_k=20", "top_k=-1"),
        (["rollout.temperature=0"], "rollout.temperature", "above 0"),
        (["runtime.device=cuda"], "runtime.device=cuda", "runtime.device=cpu"),
        (["+rollout.sglang.attention_backend=fa3"], "rollout.sglang.attention_backend=fa3", "torch_native"),
        (["+rollout.sglang.quantization=fp8"], "rollout.sglang.quantization=fp8", "leave it out"),
        (["+rollout.sglang.kv_cache_dtype=bfloat16"], "kv_cache_dtype=bfloat16", "use auto"),
        (["+rollout.sglang.enable_deterministic_inference=true"], "enable_deterministic_inference", "use false"),
        (["+rollout.sglang.context_length=69"], "rollout.sglang.context_length=69", "make 70"),
        (["+rollout.sglang.tp_size=2"], "rollout.sglang.tp_size", "use rollout.tensor"),
        (["+rollout.sglang.api_key=x"], "rollout.sglang.api_key", "leave it out"),
        (["policy.parallel.tensor=0"], "policy.parallel.tensor=0", "at least 1"),
        (["policy.parallel.tensor=3"], "policy.parallel.tensor=3", "--nproc-per-node 3"),
        (["policy.parallel.context=0"], "policy.parallel.context=0", "at least 1"),
        (["policy.recompute.mode=all"], "policy.recompute.mode=all", "none or selective or full"),
        (["policy.recompute.mode=selective", "policy.recompute.modules=[]"], "policy.recompute.modules", "name some"),
        (["policy.recompute.modules=[attention]"], "names attention", "core_attn, mlp, moe"),
        (["+policy.megatron.hidden_size=8"], "policy.megatron.hidden_size", "use model.path"),
        (["+policy.megatron.sequence_parallel=true"], "megatron.sequence_parallel", "use policy.parallel.sequence"),
        (["+policy.megatron.recompute_granularity=full"], "recompute_granularity", "use policy.recompute"),
        (["+policy.megatron.apply_rope_fusio=true"], "apply_rope_fusio", "Did you mean apply_rope_fusion?"),
        (["algorithm.advantage=ppo"], "algorithm.advantage=ppo", "gae or grpo or rloo or remax or reinforce"),
        (["reward.name=maht"], "reward.name=maht", "Did you mean math?"),
        (["reward.require=[boxed]"], "reward.require=boxed", "boxed_format"),
        (["+reward.extra.magic=1"], "reward.extra=magic", "your own"),
        (["reward.name=http"], "http", "set reward.http.url"),
        (["data.format=csv"], "data.format=csv", "gsm8k"),
        (["data.prompt_type=boba"], "data.prompt_type=boba", "AReaL-boba"),
        (["data.mix=[{path: x, weight: 0}]"], "data.mix[0].weight=0", "leave the set out"),
        (["data.mix=[{path: x, format: csv}]"], "data.mix[0].format=csv", "gsm8k"),
        (["program=sft"], "program=sft", "must be ppo"),
        (["algorithm.epochs=0"], "algorithm.epochs=0", "at least 1"),
        (["algorithm.advantage=grpo", "rollout.samples_per_prompt=1"], "algorithm.advantage=grpo", "2 or more"),
        (["algorithm.advantage=grpo", "critic.path=x"], "critic.path", "leave"),
        (["algorithm.advantage=grpo", "critic.warmup_steps=2"], "critic.warmup_steps", "0"),
        (["algorithm.use_reference=true", "algorithm.kl_coef=1", "algorithm.kl_estimator=k1"], "=k1", "k2 or k3"),
        (["algorithm.gamma=1.5"], "algorithm.gamma=1.5", "at most 1"),
        ([*CRITIC_FREE, "algorithm.gae_lambda=0.9"], "algorithm.gae_lambda", "algorithm.advantage=gae"),
        ([*CRITIC_FREE, "algorithm.length_adaptive_alpha=0.05"], "algorithm.length_adaptive_alpha", "has no critic"),
        ([*CRITIC_FREE, "algorithm.critic_lambda=1"], "algorithm.critic_lambda", "has no critic"),
        ([*CRITIC_FREE, "algorithm.value_norm=0.9"], "algorithm.value_norm", "has no critic"),
        ([*CRITIC_FREE, "algorithm.value_norm=1"], "algorithm.value_norm=1", "below 1"),
        (["+algorithm=rloo", "rollout.samples_per_prompt=1"], "algorithm.advantage=rloo", "2 or more"),
        (["algorithm.normalize_advantages=mixed", "rollout.samples_per_prompt=1"], "=mixed", "2 or more"),
        (["algorithm.normalize_advantages=all"], "algorithm.normalize_advantages=all", "or mixed or none"),
        (["+algorithm=remax", "algorithm.reward_std=none"], "algorithm.reward_std=none", "normalize_advantages"),
        (["+algorithm=remax", "algorithm.overlong_buffer=0.2"], "algorithm.overlong_buffer=0.2", "leave it out"),
        (["+algorithm=vapo", "algorithm.gae_lambda=0.9"], "algorithm.gae_lambda=0.9", "leave one of them out"),
        (["+algorithm=sapo", "algorithm.dual_clip=3"], "algorithm.dual_clip=3.0", "leave one of them out"),
        (["+algorithm=sapo", "algorithm.ratio=sequence"], "algorithm.objective=sapo", "algorithm.ratio=token"),
        (["algorithm.sapo_tau_positive=2"], "algorithm.sapo_tau_positive", "algorithm.objective=sapo"),
        (["+algorithm=[gspo,tis]"], "algorithm.ratio=sequence", "algorithm.behavior=sequence-mean"),
        (["+algorithm=[gspo,decoupled]"], "algorithm.ratio=sequence", "algorithm.behavior=sequence-mean"),
        (["+algorithm=gspo", "algorithm.m2_threshold=0.04"], "algorithm.m2_threshold=0.04", "algorithm.ratio=token"),
        (["algorithm.kl_unbiased=true"], "algorithm.kl_unbiased=true", "algorithm.kl_coef above 0"),
        ([*KL, "algorithm.kl_unbiased=true", IN_REWARD], "algorithm.kl_unbiased=true", "algorithm.kl_in=loss"),
        ([*KL, "algorithm.kl_target=6", "algorithm.kl_horizon=511"], "kl_horizon=511", "512 samples of one step"),
        (["algorithm.kl_target=6"], "algorithm.kl_target=6.0", "set kl_coef above 0"),
        (["algorithm.aggregation=constant"], "algorithm.aggregation_length=None", "${rollout.max_new_tokens}"),
        (["algorithm.aggregation_length=9"], "algorithm.aggregation_length=9", "set both"),
        (["algorithm.overlong_penalty=2"], "algorithm.overlong_penalty=2.0", "set that too"),
        (["algorithm.overlong_buffer=1.5"], "algorithm.overlong_buffer=1.5", "at most 1"),
        (["algorithm.clip_low=1.5"], "algorithm.clip_low=1.5", "at most 1"),
        (["algorithm.clip_high=-0.1"], "algorithm.clip_high=-0.1", "above 0"),
        (["algorithm.value_clip=0"], "algorithm.value_clip=0", "above 0"),
        (["algorithm.behavior_cap=-1"], "algorithm.behavior_cap=-1", "above 0"),
        (["algorithm.dual_clip=0.5"], "algorithm.dual_clip=0.5", "above 1"),
        (["algorithm.objective=cispo", "algorithm.dual_clip=3"], "algorithm.dual_clip=3.0", "leave one of them out"),
        (["algorithm.objective=ppo"], "algorithm.objective=ppo", "clip or cispo or sapo"),
        (["algorithm.ratio=turn"], "algorithm.ratio=turn", "token or sequence"),
        (["algorithm.behavior=turn"], "algorithm.behavior=turn", "token or sequence or sequence-mean"),
        (["algorithm.behavior_cap=2", "algorithm.behavior=token"], "algorithm.behavior_cap=2.0", "set either"),
        (["+algorithm=tis", "algorithm.proximal=behavior"], "proximal=behavior", "algorithm.proximal=recomputed"),
        (["+algorithm=m2po", "algorithm.proximal=interpolated"], "m2_threshold=0.04", "algorithm.proximal=recomputed"),
        (["algorithm.behavior_high=2"], "behavior_high is set", "algorithm.behavior to token"),
        (["algorithm.behavior_mode=mask"], "algorithm.behavior_mode", "algorithm.behavior to token"),
        (["algorithm.behavior=token", "algorithm.behavior_low=0.5"], "algorithm.behavior_low=0.5", "mask or reject"),
        (["algorithm.behavior=token", "algorithm.behavior_mode=mask"], "algorithm.behavior_mode=mask", "set"),
        (
            ["algorithm.behavior=sequence", "algorithm.behavior_mode=reject", "algorithm.behavior_low=2", HIGH],
            "algorithm.behavior_high=1.5",
            "raise the one or lower the other",
        ),
        (["evaluation.temperature=-1"], "evaluation.temperature=-1", "at least 0"),
        (["resharding.delta=true"], "resharding.delta=true", "disaggregated or disk"),
        (["resharding.folder=/tmp"], "resharding.folder=/tmp", "leave one of them out"),
        (["resharding.transport=disk", "resharding.folder=/no/such"], "resharding.folder=/no/such", "null for the run"),
        (["rollout.port=70000"], "rollout.port=70000", "at most 65535"),
        (["rollout.start_timeout=0"], "rollout.start_timeout=0", "above 0"),
        (["critic.warmup_steps=-1"], "critic.warmup_steps=-1", "at least 0"),
        (["steps=40", "critic.warmup_steps=40"], "critic.warmup_steps=40", "steps=40"),
        (["policy.optimizer.min_lr_ratio=2"], "policy.optimizer.min_lr_ratio=2", "at most 1"),
        (["policy.optimizer.beta2=1"], "policy.optimizer.beta2=1", "below 1"),
        (["policy.optimizer.lr=nan"], "policy.optimizer.lr=nan", "at least 0"),
        (
            ["steps=2", "policy.optimizer.schedule=linear", "policy.optimizer.warmup_steps=4", "critic.warmup_steps=1"],
            "policy.optimizer.schedule=linear",
            "at least 5 optimizer steps, but the run has 4",
        ),
        (
            ["steps=40", "critic.optimizer.schedule=cosine", "critic.optimizer.warmup_steps=160"],
            "critic.optimizer.warmup_steps=160",
            "the run has 160",
        ),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant_are_named_with_a_way_out(model, overrides, named, way_out):
    text = problems(model, overrides)
    assert named in text and way_out in text


@pytest.mark.parametrize(
    ("layout", "ranks", "reason", "choices"),
    [
        ("tensor=8", 8, "num_attention_heads=4 is not a multiple of 8, intermediate_size=12 is not", "1, 2, 4"),
        ("pipeline=3", 6, "num_hidden_layers=4 is not a multiple of 3", "1, 2, 4"),
        ("expert=2", 2, "it has no experts", "1"),
        ("expert_tensor=2", 2, "it has no experts", "1"),
    ],
)
def test_a_layout_must_fit_policy_and_critic(model, layout, ranks, reason, choices):
    path = model.partition("=")[2]
    text = problems(model, [f"policy.parallel.{layout}", f"critic.path={path}"], ranks=ranks)
    for name in ("model.path", "critic.path"):
        assert f"{name}={path}: policy.parallel.{layout} does not fit the model: {reason}" in text
        assert f"; use {choices}." in text


def test_only_a_mixture_has_experts_to_replay(model):
    assert "has no experts to replay; leave it out." in problems(model, ["policy.moe.replay=true"])


MIXTURE = {"num_experts": 6, "moe_intermediate_size": 8, "model_type": "qwen3_moe"}
LATENT = {"kv_lora_rank": 4, "n_routed_experts": 6, "n_shared_experts": 1, "moe_intermediate_size": 10}


@pytest.mark.parametrize(
    ("fields", "layout", "sentence"),
    [
        ({"num_key_value_heads": 3}, ["tensor=2"], "num_key_value_heads=3 neither is a multiple of 2 nor divides it"),
        ({}, ["pipeline=2", "virtual_pipeline=4"], "a stage of 2 layers cannot be cut into 4 chunks; use 1, 2"),
        ({}, ["pipeline=2", "first_layers=4"], "with first_layers=4 and last_layers=None its stages have 4 + 0 layers"),
        ({}, ["pipeline=4", "first_layers=3"], "its stages have 3 + 0 + 0 + 0 layers, not the num_hidden_layers=4"),
        ({}, ["pipeline=2", "first_layers=3", "virtual_pipeline=3"], "a stage of 1 layers cannot be cut into 3 chunks"),
        ({}, ["first_layers=4"], "policy.parallel.pipeline=1; set them to null"),
        ({}, ["virtual_pipeline=2"], "set it above 1, or virtual_pipeline=1"),
        ({}, ["tensor=1", "sequence=true"], "set sequence=false"),
        ({}, ["overlap_param_gather=true"], "overlap_grad_reduce=true"),
        (MIXTURE, ["expert=4"], "its 6 experts are not a multiple of 4; use 1, 2, 3, 6"),
        (MIXTURE, ["expert=2", "expert_tensor=3"], "moe_intermediate_size=8 is not a multiple of 3; use 1, 2, 4"),
        (MIXTURE, ["tensor=2"], "mixture-of-experts model needs policy.parallel.sequence=true"),
        (MIXTURE, ["tensor=2", "sequence=true", "expert_tensor=1"], "set it to null, or expert above 1"),
        (LATENT, ["tensor=2"], "latent attention model needs policy.parallel.sequence=true"),
        (LATENT, ["tensor=4", "sequence=true"], "n_shared_experts * moe_intermediate_size = 10 is not a multiple of 4"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(model, fields, layout, sentence):
    path = Path(model.partition("=")[2]) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    assert sentence in problems(model, [f"policy.parallel.{option}" for option in layout], ranks=24)


@pytest.mark.parametrize(
    ("fields", "layout"),
    [
        ({}, ["tensor=4"]),  # fewer KV heads than ranks
        ({}, ["pipeline=2", "virtual_pipeline=2"]),
        ({}, ["pipeline=3", "first_layers=1", "last_layers=1"]),
        (MIXTURE, ["expert=3", "tensor=2", "sequence=true", "expert_tensor=1"]),
        (LATENT, ["tensor=2", "sequence=true", "context=2"]),
    ],
)
def test_a_layout_that_fits_passes(model, fields, layout):
    path = Path(model.partition("=")[2]) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    options = ["+experiment=quickstart", model, "rollout.prompts_per_step=24"]
    options += [f"policy.parallel.{option}" for option in layout]
    check(parse("ppo", options), ranks=24, cuda=False)


def test_batches_are_divided_over_data_parallel_replicas_only(model):
    """CP ranks share the work on the same sequences."""
    layout = ["policy.parallel.tensor=1", "policy.parallel.context=3", "rollout.prompts_per_step=4"]
    check(parse("ppo", ["+experiment=quickstart", model, *layout]), ranks=6, cuda=False)


@pytest.mark.parametrize(
    ("layout", "ranks", "way_out"),
    [
        (["tensor=2", "context=2"], 6, "policy.parallel.context=2 = 4 must divide the number of ranks, 6"),
        (["tensor=1", "expert=4"], 6, "policy.parallel.expert=4 = 4 must divide the number of ranks, 6"),
    ],
)
def test_a_layout_must_divide_the_ranks(model, layout, ranks, way_out):
    assert way_out in problems(model, [f"policy.parallel.{option}" for option in layout], ranks=ranks)


def test_a_warm_up_that_ends_in_time_passes(model):
    fits = ["policy.optimizer.schedule=linear", "policy.optimizer.warmup_steps=155", "critic.warmup_steps=1"]
    check(parse("ppo", ["+experiment=quickstart", model, *fits]), ranks=2, cuda=False)


def test_an_evaluation_needs_no_schedule(model):
    evaluation = ["steps=0", "policy.optimizer.schedule=cosine", "policy.optimizer.warmup_steps=5"]
    check(parse("ppo", ["+experiment=quickstart", model, *evaluation]), ranks=2, cuda=False)


@pytest.mark.parametrize("content", ["[]", "{", None])
def test_an_unreadable_model_is_left_to_its_reader(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    check(parse("ppo", ["+experiment=quickstart", f"model.path={tmp_path}"]), ranks=2, cuda=False)


def test_all_problems_are_shown_at_once(model):
    text = problems(model, ["algorithm.kl_coef=0.1", "rollout.top_p=0.5"])
    assert "algorithm.kl_coef" in text and "rollout.top_p" in text


def test_gpu_only_engine_options_are_allowed_on_a_gpu(model):
    check(parse("ppo", ["+experiment=quickstart", model, "+rollout.sglang.attention_backend=fa3"]), 2, cuda=True)


def test_sft_batch_must_be_divisible(model):
    text = problems(model, ["sequences_per_step=5"], program="sft")
    assert "sequences_per_step=5" in text


DISTILL = ["+algorithm=distill", "algorithm.reference_path=teacher"]


@pytest.mark.parametrize(
    ("program", "overrides", "said"),
    [
        ("ppo", ["+algorithm=distill"], r"learns from a teacher; set algorithm.reference_path"),
        ("ppo", [*DISTILL, "algorithm.kl_coef=0.1"], r"algorithm.kl_coef=0.1: .* set it to 0"),
        ("ppo", [*DISTILL, "algorithm.gamma=0.9"], r"algorithm.gamma=0.9: .* nothing is discounted"),
        ("ppo", ["algorithm.reference_path=x"], r"reference_path is set; set algorithm.use_reference=true"),
        ("dpo", ["pairs_per_step=5"], r"pairs_per_step=5 must be divisible by data parallel size 2"),
        ("dpo", ["max_tokens=256", "policy.max_tokens_per_micro_batch=513"], r"2 \* \(max_tokens \+ 1\) = 514 .* 514"),
        ("dpo", ["max_tokens=300"], r"max_tokens = 300 is longer than the model's context of 256"),
        ("dpo", ["data.format=gsm8k"], r"data.format=gsm8k: pairs are told by their fields"),
        ("dpo", ["loss=ipo", "label_smoothing=0.1"], r"label_smoothing=0.1 is for loss=sigmoid, not for ipo"),
        ("dpo", ["label_smoothing=0.5"], r"label_smoothing=0.5: must be below 0.5"),
        ("dpo", ["loss=hinge"], r"loss=hinge: must be sigmoid or ipo or nca_pair"),
        ("reward", ["pairs_per_step=3"], r"pairs_per_step=3 must be divisible"),
        ("rejection", ["data.validation=x"], r"data.validation: .* tools/evaluate.py"),
        ("rejection", ["data.weight=2"], r"data.weight=2.0: every prompt is sampled as often"),
        ("rejection", ["rollout.temperature=0"], r"rollout.samples_per_prompt=1"),
        ("rejection", ["rollout.tensor=4"], r"rollout.tensor=4 need more than the 2 rank\(s\).*start more ranks"),
        ("rejection", ["reward.name=maths"], r"reward.name=maths: no such verifier. Did you mean math"),
    ],
)
def test_other_trainers_say_what_cannot_be_meant(model, program, overrides, said):
    assert re.search(said, problems(model, overrides, program=program))


@pytest.mark.parametrize("program", ["dpo", "reward", "rejection"])
def test_recipes_of_other_trainers_pass(model, program):
    check(parse(program, [f"+experiment=quickstart-{program}", model]), ranks=2, cuda=False)
