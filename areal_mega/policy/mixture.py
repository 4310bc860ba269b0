"""Mixture of experts in RL: routing that can be replayed, a balance loss that parallelism cannot change, metrics.

The router's rows come with a place in the step's batch (-1 for padding), which travels through Megatron's layers as
the argument that it calls ``padding_mask``: an argument is there again when a layer is computed a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor

# megatron-core 0.16.1 defines this name with TransformerEngine only, and uses it without.
if not hasattr(moe_utils, "te_general_gemm"):
    moe_utils.te_general_gemm = None


class PackedMoELayer(MoELayer):
    """Megatron's MoE layer; ``padding_mask`` are the places ``[1, l]`` of this rank's rows."""

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        selective = config.recompute_granularity == "selective"
        self.checkpointed = selective and "moe" in config.recompute_modules
        self.moe_layer_recompute = False  # done here: Megatron's would forget the places

    def forward(self, hidden_states: Tensor, intermediate_tensors: None = None, *, padding_mask: Tensor) -> Any:
        if self.checkpointed and self.training:
            return tensor_parallel.checkpoint(self._forward, False, hidden_states, padding_mask)
        return self._forward(hidden_states, padding_mask)

    def _forward(self, hidden_states: Tensor, places: Tensor) -> Any:
        self.router.router_replay.places = places.flatten()
        return super().forward(hidden_states)


class Replay:
    """What Megatron's router asks for the choice of experts.

    choices: ``[N, k]`` the experts of each token of the step's batch, or -1 to choose; None: choose always.
    places: ``[l]`` in that batch of the rows that are routed now.
    """

    def __init__(self) -> None:
        self.choices: Tensor | None = None
        self.places = torch.empty(0, dtype=torch.int64)

    @property
    def real(self) -> Tensor:
        """``[l]`` False for padding."""
        return self.places >= 0

    def get_replay_topk(
        self, scores: Tensor, topk: int, num_groups: int | None, group_topk: int | None, choose: Callable
    ) -> tuple[Tensor, Tensor]:
        """scores ``[l, E]`` → those of the chosen experts, and the choice, ``[l, k]``. ``choose`` is Megatron's own."""
        own, chosen = choose(scores, topk, num_groups, group_topk)
        if self.choices is None:
            return own, chosen
        told = self.choices[self.places.clamp(min=0)].to(chosen)
        told = torch.where(self.real[:, None] & (told >= 0), told, chosen)
        return scores.gather(1, told), told


class PackedRouter(TopKRouter):
    """Megatron's router, which can be told the choice of experts and keeps account of its own.

    balance: weight of the balance loss by the step's tokens; see `_balance_loss`. load: ``[E]`` each expert's part of
    the tokens of the last step.

    The account of a step is kept while gradients are computed: tallies ``[2 E + 2]`` are choices and probabilities
    by expert, the entropy, and the number of tokens, summed over the tokens of this rank.
    """

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        experts = config.num_moe_experts
        self.register_buffer("load", torch.full((experts,), 1 / experts), persistent=False)
        self.register_buffer("tallies", torch.zeros(2 * experts + 2, dtype=torch.float64), persistent=False)
        self.balance = 0.0
        self.router_replay = Replay()

    def routing(self, logits: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``[l, 1, E]`` → weights of the chosen experts and which they are, ``[l, E]`` each."""
        weights, chosen = super().routing(logits)
        if torch.is_grad_enabled():
            real = self.router_replay.real
            probabilities = self._probabilities(logits.flatten(0, -2)[real])
            self._tally(chosen[real], probabilities.detach())
            if self.balance:
                weights = MoEAuxLossAutoScaler.apply(weights, self._balance_loss(probabilities))
        return weights, chosen

    def _probabilities(self, logits: Tensor) -> Tensor:
        if self.score_function == "softmax":
            return logits.softmax(-1, dtype=torch.float32)
        scores = logits.float().sigmoid()
        return scores / (scores.sum(-1, keepdim=True) + 1e-20)

    def _balance_loss(self, probabilities: Tensor) -> Tensor:
        """Some tokens' part of ``balance * E * sum_e f_e P_e`` (Switch Transformer, arXiv 2101.03961, equation 4).

        P is the mean probability of the step's tokens. f is the load of the step before: it has no gradient, and
        that of a step under way is not known before its last micro-batch. So the loss is a sum over tokens, the same
        in every layout and for every cut into micro-batches.
        """
        return self.balance * self.num_experts * (probabilities @ self.load).sum()

    def _tally(self, chosen: Tensor, probabilities: Tensor) -> None:
        entropy = -(probabilities * probabilities.clamp(min=1e-30).log()).sum()
        count = probabilities.new_tensor(len(chosen))
        sums = torch.cat([chosen.sum(0).float(), probabilities.sum(0), entropy[None], count[None]])
        self.tallies += sums

    def _apply_expert_bias(self, routing_map: Tensor, padding_mask: Tensor | None = None) -> None:
        """Counts for the update of the bias, without padding."""
        if self.enable_expert_bias and torch.is_grad_enabled():
            self.local_tokens_per_expert += routing_map[self.router_replay.real].sum(0)


def routers_of(chunks: Sequence[torch.nn.Module]) -> list[PackedRouter]:
    """The routers of this rank's layers."""
    return [module for chunk in chunks for module in chunk.modules() if isinstance(module, PackedRouter)]


class Routing:
    """The routers of one model over a training step."""

    def __init__(self, chunks: Sequence[torch.nn.Module], config: TransformerConfig, balance: float) -> None:
        """balance: coefficient of the balance loss."""
        self.routers, self.config, self.balance = routers_of(chunks), config, balance
        self.device = next(chunks[0].parameters()).device

    def replay(self, choices: Tensor | None) -> None:
        """Use these experts: ``[N, layers * k]``, of all layers of the model, dense ones included; None: choose."""
        if choices is not None:
            choices = choices.reshape(len(choices), self.config.num_layers, self.config.moe_router_topk)
        for router in self.routers:
            router.router_replay.choices = (
                None if choices is None else choices[:, router.layer_number - 1].to(router.weight.device)
            )

    def begin_step(self, tokens: float) -> None:
        """tokens: of the step's batch, on all ranks."""
        for router in self.routers:
            router.balance = self.balance / tokens
            router.tallies.zero_()

    def end_step(self) -> dict[str, float]:
        """Learn the step's load, and tell its metrics: the same on all ranks.

        ``load_max`` and ``load_min`` are those of the busiest and the idlest expert of any layer, as a multiple of an
        even share; ``load_max_mean`` is the busiest one's on average over layers. ``entropy`` is the routers' mean in
        nats, ``balance_loss`` the mean of ``E * sum_e f_e P_e`` over layers, which is 1 when all is even.
        """
        sums = self._sums_of_all_layers()
        experts = self.config.num_moe_experts
        counts, probabilities, entropy, tokens = sums.split([experts, experts, 1, 1], dim=1)
        load = counts / counts.sum(1, keepdim=True).clamp(min=1)
        mean = probabilities / tokens.clamp(min=1)
        for router in self.routers:
            router.load.copy_(load[router.layer_number - 1])
        routed = tokens[:, 0] > 0
        if not routed.any():
            return {}
        relative = load[routed] * experts
        return {
            "load_max": float(relative.max()),
            "load_max_mean": float(relative.max(1).values.mean()),
            "load_min": float(relative.min()),
            "entropy": float((entropy / tokens.clamp(min=1))[routed].mean()),
            "balance_loss": float((load * mean).sum(1)[routed].mean() * experts),
        }

    def _sums_of_all_layers(self) -> Tensor:
        """``[layers, 2 E + 2]``, summed over the tokens of all ranks."""
        layers, width = self.config.num_layers, 2 * self.config.num_moe_experts + 2
        sums = torch.zeros(layers, width, dtype=torch.float64, device=self.device)
        for router in self.routers:
            sums[router.layer_number - 1] = router.tallies
        dist.all_reduce(sums, group=parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True))
        dist.all_reduce(sums, group=parallel_state.get_pipeline_model_parallel_group())
        return sums
