"""The router of a mixture of experts: replay, the balance loss, metrics, and what recompute must not change."""

import pytest
import torch
from models import save_tiny_model

from areal_mega.config.options import MoEOptions, OptimizerOptions, PolicyOptions, RecomputeOptions
from areal_mega.data.packed import PackedBatch
from areal_mega.policy.mixture import routers_of
from areal_mega.policy.model import MegatronModel

LENGTHS = (9, 30, 2, 17, 12)
EXPERTS, LAYERS, TOP = 4, 4, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    save_tiny_model(folder / "qwen3_moe", "qwen3_moe")
    save_tiny_model(folder / "deepseek_v3", "deepseek_v3")
    return folder


def build(topology, folder, family="qwen3_moe", lr=1e-3, tokens=40, recompute=None, **moe):
    options = PolicyOptions(
        max_tokens_per_micro_batch=tokens, moe=MoEOptions(**moe), recompute=recompute or RecomputeOptions()
    )
    optimizer = OptimizerOptions(lr=lr, clip_grad=0.0)
    return MegatronModel(
        topology, str(folder / family), options, dtype="float32", optimizer=optimizer, head="logprob", seed=1
    )


def make_batch(**fields):
    generator = torch.Generator().manual_seed(2)
    rows = [
        {"tokens": torch.randint(0, 131, (n,), generator=generator), "loss_mask": [t > 0 for t in range(n)]}
        for n in LENGTHS
    ]
    return PackedBatch.pack(rows).with_fields(**fields)


def loss(batch, outputs):
    return -outputs["logprobs"].sum() / sum(LENGTHS), {}


def gradients(model):
    return {name: p.main_grad.clone() for name, p in model.chunks[0].named_parameters()}


def record(model, monkeypatch):
    """The experts that each router chooses, ``[N, layers, k]``, in the order of the batch's tokens."""
    chosen = torch.full((sum(LENGTHS), LAYERS, TOP), -1)
    for router in routers_of(model.chunks):
        replay = router.router_replay

        def keep(*arguments, replay=replay, layer=router.layer_number - 1):
            scores, choice = type(replay).get_replay_topk(replay, *arguments)
            chosen[replay.places[replay.real], layer] = choice[replay.real]
            return scores, choice

        monkeypatch.setattr(replay, "get_replay_topk", keep)
    return chosen


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_replayed_experts_are_the_ones_used(topology, folder, monkeypatch, family, mode):
    """In both passes of a recomputed layer, for micro-batches under way together; the engine's gaps are filled."""
    recompute = RecomputeOptions(mode=mode, modules=["moe"])
    model = build(topology, folder, family, recompute=recompute, replay=True)
    choices = torch.rand(sum(LENGTHS), LAYERS, EXPERTS).argsort(-1)[..., :TOP]
    choices[::7] = -1
    batch = make_batch(routed_experts=choices)
    chosen = record(model, monkeypatch)
    model.train_step(batch, loss)
    sparse = [router.layer_number - 1 for router in routers_of(model.chunks)]
    told = choices[:, sparse] >= 0
    assert torch.equal(chosen[:, sparse][told], choices[:, sparse][told])
    assert (chosen[:, sparse] >= 0).all()


def test_replaying_its_own_choice_changes_nothing(topology, folder, monkeypatch):
    model = build(topology, folder)
    chosen = record(model, monkeypatch)
    stats = model.train_step(make_batch(), loss)
    again = build(topology, folder, replay=True)
    assert again.train_step(make_batch(routed_experts=chosen), loss) == stats
    other = chosen.roll(1, 0)
    moved = build(topology, folder, replay=True).train_step(make_batch(routed_experts=other), loss)
    assert moved["loss"] != stats["loss"]
    assert build(topology, folder).train_step(make_batch(routed_experts=other), loss) == stats


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recompute_changes_neither_gradients_nor_metrics(topology, folder, mode):
    plain = build(topology, folder, balance_coef=0.1)
    again = build(topology, folder, balance_coef=0.1, recompute=RecomputeOptions(mode=mode, modules=["moe"]))
    for _ in range(2):
        assert again.train_step(make_batch(), loss) == pytest.approx(plain.train_step(make_batch(), loss), rel=1e-6)
    for name, gradient in gradients(again).items():
        torch.testing.assert_close(gradient, gradients(plain)[name], rtol=0, atol=1e-6)


def hidden_before_routers(model):
    """Each router's input, as the forward passes bring it."""
    seen = {router.layer_number: [] for router in routers_of(model.chunks)}
    for router in routers_of(model.chunks):
        router.register_forward_pre_hook(
            lambda router, inputs: seen[router.layer_number].append(inputs[0].detach().flatten(0, -2).double())
        )
    return seen


def test_balance_loss_and_metrics_follow_their_formulas(topology, folder):
    """float64, over all tokens at once: E * sum_e f_e P_e with the step's own f; its gradient with the last one's."""
    coefficient, tokens = 0.3, sum(LENGTHS)
    model, plain = (build(topology, folder, lr=0.0, balance_coef=c) for c in (coefficient, 0.0))
    seen = hidden_before_routers(model)
    first = model.train_step(make_batch(), loss)
    loads, balance, entropy, first_gradients = {}, [], [], gradients(model)
    plain.train_step(make_batch(), loss)
    for router in routers_of(model.chunks):
        logits = torch.cat(seen[router.layer_number]) @ router.weight.detach().double().t()
        probabilities = logits.softmax(-1)
        counts = (
            torch.zeros(EXPERTS)
            .double()
            .index_add(0, logits.topk(TOP).indices.flatten(), torch.ones(tokens * TOP).double())
        )
        load = counts / counts.sum()
        loads[router.layer_number] = load
        balance.append(float(EXPERTS * (load * probabilities.mean(0)).sum()))
        entropy.append(float(-(probabilities * probabilities.log()).sum(-1).mean()))
        torch.testing.assert_close(router.load.double(), load, rtol=0, atol=1e-7)
        seen[router.layer_number].clear()
    assert first["moe/balance_loss"] == pytest.approx(sum(balance) / LAYERS, rel=1e-6)
    assert first["moe/entropy"] == pytest.approx(sum(entropy) / LAYERS, rel=1e-6)
    shares = torch.stack(list(loads.values())) * EXPERTS
    assert first["moe/load_max"] == pytest.approx(float(shares.max()), rel=1e-6)
    assert first["moe/load_min"] == pytest.approx(float(shares.min()), rel=1e-6)
    assert first["moe/load_max_mean"] == pytest.approx(float(shares.max(1).values.mean()), rel=1e-6)
    # The first step knows of no load: an even one has no gradient.
    for name, gradient in first_gradients.items():
        torch.testing.assert_close(gradient, gradients(plain)[name], rtol=0, atol=1e-6)
    model.train_step(make_batch(), loss)
    last = max(loads)
    weight = routers_of(model.chunks)[-1].weight.detach().double().requires_grad_()
    probabilities = (torch.cat(seen[last]) @ weight.t()).softmax(-1)
    (expected,) = torch.autograd.grad(coefficient * EXPERTS * (loads[last] * probabilities.mean(0)).sum(), weight)
    name = f"decoder.layers.{LAYERS - 1}.mlp.router.weight"
    added = gradients(model)[name] - gradients(plain)[name]
    torch.testing.assert_close(added.double(), expected, rtol=0, atol=1e-6)
    assert expected.abs().max() > 1e-4


def test_the_balance_loss_does_not_depend_on_micro_batches(topology, folder):
    models = [build(topology, folder, tokens=tokens, balance_coef=0.3) for tokens in (30, 1000)]
    for _ in range(3):
        few, many = (model.train_step(make_batch(), loss) for model in models)
        assert few == pytest.approx(many, rel=1e-4)


def test_the_balance_loss_balances(topology, folder):
    """From routers that prefer an expert: random ones are so near to balance that their loads go up and down."""
    model = build(topology, folder, balance_coef=1.0)
    seen = hidden_before_routers(model)
    model.forward(make_batch())
    for router in routers_of(model.chunks):
        mean = torch.cat(seen[router.layer_number]).mean(0).float()
        router.weight.data[0] += 2 * mean / mean.square().sum()
    nothing_else = [
        model.train_step(make_batch(), lambda _, outputs: (0 * outputs["logprobs"].sum(), {})) for _ in range(60)
    ]
    first, last = nothing_else[0], nothing_else[-1]
    assert last["moe/balance_loss"] < 1 + 0.5 * (first["moe/balance_loss"] - 1)
    assert last["moe/load_max_mean"] < first["moe/load_max_mean"]


def test_the_bias_moves_towards_balance(topology, folder):
    """DeepSeek-V3: plus or minus the rate, by whether an expert had less or more than its share."""
    model = build(topology, folder, "deepseek_v3", lr=0.0, bias_update_rate=0.01)
    router = routers_of(model.chunks)[0]
    before = router.expert_bias.clone()
    model.train_step(make_batch(), loss)
    expected = 0.01 * torch.sign(1 / EXPERTS - router.load)
    torch.testing.assert_close(router.expert_bias - before, expected, rtol=0, atol=1e-6)
