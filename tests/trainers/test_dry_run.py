"""The plan of a recipe against counts by hand."""

from math import prod

import pytest

from areal_mega.config.command_line import parse
from areal_mega.config.errors import UserError
from areal_mega.resharding.known_models import known_model
from areal_mega.resharding.layouts import file_layout, megatron_layout
from areal_mega.trainers.dry_run import model_config, rank_parts, show, training_grid
from areal_mega.trainers.memory import activation_bytes, layer_bytes_per_token, model_bytes, parameter_counts


def planned(name, *overrides):
    options = parse("ppo", [f"+experiment={name}", "dry_run=true", *overrides])
    return options, model_config(options.model.path), training_grid(options, options.policy.parallel.ranks)


def test_32b_without_its_folder(capsys):
    options, _, _ = planned("32b")
    show(options)
    said = capsys.readouterr().out
    assert "32.8 billion parameters" in said and "128 ranks: DP 8 * TP 4 * PP 4" in said
    assert "stage 3" in said and "optimizer states" in said
    assert "16384 samples in 4 mini-batches" in said
    assert "new weights: 16 engines of TP 8" in said and "lower bound" in said


@pytest.mark.parametrize("name", ["32b", "qwen3-30b-a3b"])
def test_all_ranks_together_hold_every_optimizer_state_once(name):
    options, hf, grid = planned(name)
    places = grid.places()
    layouts = {place: megatron_layout(hf, place) for place in dict.fromkeys(places)}
    states = sum(model_bytes(layouts[place], options, grid.world)["optimizer states"] for place in places)
    # Each rank of TP holds all of the norms, the router and what else is not cut.
    uncut = grid.tp - 1
    whole = {name: prod(shape) for name, shape in file_layout(hf).shapes.items()}
    small = sum(n for name, n in whole.items() if "norm" in name or ".gate.weight" in name)
    assert states / 12 == pytest.approx(sum(whole.values()) + uncut * small, rel=2e-4)


def test_activations_of_a_dense_layer_by_hand():
    options, hf, _ = planned("32b")
    # 5120 wide, 40 heads and 8 groups of 128, MLP of 27648, TP 4 with sequence parallel, bfloat16
    by_hand = 2 * (4 * 5120 + 2 * 128 * (40 + 8) + 3 * 27648) / 4
    assert layer_bytes_per_token(hf, options.policy, 2) == by_hand
    tokens = 30720
    stage0 = tokens * (4 * 16 * 2 * 5120 / 4 + by_hand)  # 4 micro-batches, 16 layers' inputs, one layer at a time
    assert activation_bytes(hf, options.policy, 0, 2) == pytest.approx(stage0)
    options.policy.recompute.mode = "none"
    assert activation_bytes(hf, options.policy, 3, 2) == pytest.approx(tokens * 16 * by_hand)
    options.policy.parallel.virtual_pipeline = 2
    assert activation_bytes(hf, options.policy, 0, 2) == pytest.approx(tokens * 11 * 8 * by_hand)


def test_experts_count_once_for_each_token_they_take():
    options, hf, _ = planned("qwen3-30b-a3b")
    assert (
        layer_bytes_per_token(hf, options.policy, 2) == 2 * (4 * 2048 + 2 * 128 * (32 + 4) + 8 * (2048 + 3 * 768)) / 4
    )


def test_what_is_offloaded_is_not_on_the_device():
    options, hf, grid = planned("qwen3-30b-a3b")
    assert rank_parts(options, hf, grid, 0)["optimizer states"] == 0
    options, hf, grid = planned("orz-7b", "algorithm.use_reference=true")
    parts = rank_parts(options, hf, grid, 0)
    assert parts["reference"] == parts["parameters"]
    body = parts["parameters"] + parts["gradients"] + parts["optimizer states"]
    assert parts["critic"] == pytest.approx(body, rel=0.01)  # the first stage has no head
    options.policy.offload.reference = True
    assert "reference" not in rank_parts(options, hf, grid, 0)


def test_parameters_are_counted_with_their_experts():
    _, hf, grid = planned("qwen3-30b-a3b")
    dense, experts = parameter_counts(megatron_layout(hf, grid.places()[0]))
    assert experts == 48 * (128 // 8) * 3 * 2048 * 768
    assert dense < 0.1 * experts + 2 * 151936 * 2048


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.path=models/mine"], "name one of qwen2.5-1.5b"),
        (["policy.parallel.ranks=null"], "policy.parallel.ranks GPUs, which is null"),
        (["policy.parallel.tensor=16"], r"policy.parallel.tensor=16 does not fit the model"),
        (["rollout.engines=17"], "rollout.engines=17"),
    ],
)
def test_plans_that_cannot_be_made(overrides, said):
    with pytest.raises(UserError, match=said):
        show(parse("ppo", ["+experiment=32b", *overrides]))


def test_the_names_of_models_are_found_in_paths():
    assert vars(model_config("/data/models/Qwen3-30B-A3B/")) == vars(known_model("qwen3-30b-a3b"))
