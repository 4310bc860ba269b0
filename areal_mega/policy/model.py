"""One model on Megatron's layout: policy, critic or reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from areal_mega.config.dtypes import DTYPES
from areal_mega.config.options import OptimizerOptions, PolicyOptions
from areal_mega.data.packed import ROUTED, PackedBatch
from areal_mega.policy import hf_weights
from areal_mega.policy.checkpoint_files import SHARD_BYTES, write_folder
from areal_mega.policy.gpt import OUTPUTS, Head, PackedGPT
from areal_mega.policy.inputs import PLACE, Inputs, MicroBatch
from areal_mega.policy.mixture import Routing
from areal_mega.policy.offload import Parked, parked_model, parked_optimizer
from areal_mega.policy.optimizer import build_optimizer, data_parallel, learning_rate
from areal_mega.policy.spec import classifier_config, read_config, transformer_config
from areal_mega.resharding.layouts import MegatronPlace
from areal_mega.runtime.distributed import Topology

Outputs = dict[str, Tensor]
LossFunction = Callable[[PackedBatch, Outputs], tuple[Tensor, dict[str, Tensor]]]


class MegatronModel:
    """A Hugging Face model in a layout of Megatron's.

    All ranks build it and call its methods together. The batch of `forward` and `train_step` is this DP
    replica's share: the same on the replica's TP x CP x PP ranks, of any number of micro-batches on each replica.

    chunks: this pipeline stage's layers, in one part or several (interleaved pipeline). ddp: the same with gradients.
    weights, states: those of a frozen model and of the optimizer, where they are offloaded.
    """

    def __init__(
        self,
        topology: Topology,
        hf_path: str,
        options: PolicyOptions,
        *,
        dtype: str,
        optimizer: OptimizerOptions | None,
        head: Head,
        temperature: float = 1.0,
        total_steps: int = 0,
        seed: int,
        load_weights: bool = True,
    ) -> None:
        """Build the model and load its weights, unless a checkpoint will bring them.

        hf_path: model folder. optimizer: None freezes the model. head: ``logprob`` for policy and reference,
        ``value`` for a critic. temperature: divides the logits. total_steps: optimizer steps of the run, for
        the learning-rate schedule. seed: of a new value head.

        Raises:
            UserError: the folder is broken, its model unsupported, or the layout does not fit it.
        """
        self.topology, self.options, self.hf_path, self.head = topology, options, hf_path, head
        self.dtype, self.dtype_name, self.trains = DTYPES[dtype], dtype, optimizer is not None
        self.hf = read_config(hf_path)
        config = transformer_config(self.hf, options, topology.parallel, self.dtype)
        self.chunks = [
            PackedGPT(
                self.hf,
                config,
                topology,
                chunk=chunk,
                head=head,
                temperature=temperature,
                logprob_workspace=options.logprob_workspace_mb * 2**20 or None,
                seed=seed,
            ).to(topology.device)
            for chunk in range(topology.vpp)
        ]
        self.inputs = Inputs(topology, config, options.max_tokens_per_micro_batch)
        self.weights: Parked | None = None
        self.states: Parked | None = None
        self.routing = Routing(self.chunks, config, options.moe.balance_coef) if config.num_moe_experts else None
        if load_weights:
            hf_weights.load(self.chunks, self.hf, hf_path, topology)
        if optimizer is None:
            for chunk in self.chunks:
                chunk.requires_grad_(False)
            if options.offload.reference:
                self.weights = parked_model(self.chunks, topology.device)
        else:
            self._prepare_training(optimizer, total_steps)

    def _prepare_training(self, options: OptimizerOptions, total_steps: int) -> None:
        self.ddp = data_parallel(self.chunks, self.topology.parallel)
        self.optimizer, self.schedule = build_optimizer(self.ddp, options, total_steps)
        if self.options.offload.optimizer:
            self.states = parked_optimizer(self.optimizer, self.topology.device)
        config = self.chunks[0].config
        config.finalize_model_grads_func = finalize_model_grads
        config.grad_scale_func = self.optimizer.scale_loss

    @torch.no_grad()
    def forward(self, batch: PackedBatch) -> Outputs:
        """The head's outputs for every token, without gradients.

        Returns:
            ``{"logprobs": [N], "entropy": [N]}`` or ``{"values": [N]}``, float32 on the CPU, on all ranks of
            the replica. ``field[t]`` describes token t (it comes from the hidden state at t - 1) and is 0
            where ``loss_mask`` is False.
        """
        with self.weights.here() if self.weights else nullcontext():
            parts = self._run(self.chunks, batch, _collect)
        names = OUTPUTS[self.head]
        outputs = torch.zeros(len(names), batch.num_tokens)
        for index, part in parts:
            outputs[:, index] = torch.stack([part[name] for name in names]).cpu()
        if self.topology.pp > 1:
            group = parallel_state.get_pipeline_model_parallel_group()
            outputs = outputs.to(self.topology.device)
            dist.broadcast(outputs, parallel_state.get_pipeline_model_parallel_last_rank(), group=group)
        return dict(zip(names, outputs.cpu(), strict=True))

    def train_step(self, batch: PackedBatch, loss_fn: LossFunction) -> dict[str, float]:
        """One optimizer step on the gradient of the global loss.

        loss_fn: called with a micro-batch (on the model's device) and the head's outputs ``[n]``; returns its
        part of the loss and statistics. The global loss is the sum of all parts over micro-batches and DP
        replicas, so the function divides by the global counts in ``batch.counts`` itself. Statistics are
        summed likewise.

        Returns:
            The statistics, ``loss``, ``grad_norm`` (before clipping) and ``lr``, the same on all ranks; of a mixture of
            experts also ``moe/...``, see `areal_mega.policy.mixture.Routing`.
        """
        for chunk in self.ddp:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        if self.routing:
            self.routing.begin_step(self._tokens_of_all(batch))
        parts = self._run(self.ddp, batch, partial(_losses, loss_fn))
        routing = self.routing.end_step() if self.routing else {}
        self.schedule.step(1)
        with self.states.here() if self.states else nullcontext():
            _, grad_norm, _ = self.optimizer.step()
        return {
            **self._sum_over_ranks(parts),
            "grad_norm": float(grad_norm),
            "lr": learning_rate(self.optimizer),
            **{f"moe/{name}": value for name, value in routing.items()},
        }

    @property
    def place(self) -> MegatronPlace:
        """Where this rank is in the layout of the weights."""
        return hf_weights.place(self.topology)

    @property
    def held_weights(self) -> dict[str, Tensor]:
        """This rank's weights by Megatron name: the tensors themselves, which training changes. See `settle`."""
        return {name: weight.detach() for name, weight in hf_weights.named_weights(self.chunks).items()}

    def settle(self) -> None:
        """Wait until the weights are those of the last step: with overlap, other ranks' parts may be on their way."""
        if self.topology.parallel.overlap_param_gather and hasattr(self, "ddp"):
            for chunk in self.ddp:
                chunk.start_param_sync(force_sync=True)

    def export(self) -> Iterator[tuple[str, Tensor]]:
        """HF name and whole tensor, on rank 0. The other ranks must iterate as well, and get nothing."""
        self.settle()
        yield from hf_weights.export(hf_weights.named_weights(self.chunks), self.hf, self.topology)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None, shard_bytes: int = SHARD_BYTES) -> None:
        """Write a folder that transformers loads: a causal model, or with a value head a sequence classifier of one
        label (``score.weight``), whose logit is the value after the last token.

        Each rank of DP replica 0 writes a share of the tensors. dtype: of the written tensors; None: the model's.
        """
        hf = classifier_config(self.hf) if self.head == "value" else self.hf
        hf.dtype = dtype or self.dtype
        self.settle()
        shares = hf_weights.export_shares(hf_weights.named_weights(self.chunks), self.hf, self.topology)
        tensors = ((name, tensor.to(hf.dtype)) for name, tensor in shares)
        write_folder(folder, hf, tensors, self.hf_path, shard_bytes, self.topology.rank, self.topology.gather)

    def _run(self, chunks: Sequence[torch.nn.Module], batch: PackedBatch, finish: Callable) -> list:
        """All micro-batches through Megatron's schedule; on the last stage, what ``finish`` kept of each."""
        split = self.inputs.split(batch)
        if self.routing:
            # The engine's choices are the policy's: a reference model or a critic would choose others.
            replays = self.options.moe.replay and self.trains and self.head == "logprob"
            self.routing.replay(batch[ROUTED] if replays and ROUTED in batch else None)
        # Generators, so that a micro-batch lives on the device only while it is worked on; one for each chunk.
        inputs = [self.inputs.of(split, self.dtype) for _ in chunks]
        return get_forward_backward_func()(
            forward_step_func=partial(_forward_step, finish),
            data_iterator=inputs if len(inputs) > 1 else inputs[0],
            model=list(chunks),
            num_microbatches=len(split),
            seq_length=1,  # the stages tell each other the true lengths
            micro_batch_size=1,
            forward_only=not torch.is_grad_enabled(),
        )

    def _tokens_of_all(self, batch: PackedBatch) -> float:
        return float(self.topology.sum_over_dp(torch.tensor(float(batch.num_tokens)).to(self.topology.device)))

    def _sum_over_ranks(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """Statistics of the last stage's micro-batches, summed over them and over DP, on all ranks."""
        sums: dict[str, float] = {}
        if self.topology.is_last_stage:
            names = list(parts[0])
            values = torch.stack([torch.stack([part[name] for name in names]) for part in parts]).sum(0)
            dist.all_reduce(values, group=parallel_state.get_data_parallel_group())
            sums = dict(zip(names, values.tolist(), strict=True))
        if self.topology.pp == 1:
            return sums
        box = [sums]
        group = parallel_state.get_pipeline_model_parallel_group()
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast_object_list(box, src=last, group=group)
        return box[0]


def _forward_step(finish: Callable, inputs: Iterator[MicroBatch], model: torch.nn.Module) -> tuple:
    micro_batch = next(inputs)
    outputs = model(micro_batch.batch.tokens, micro_batch.packed, micro_batch.selection, micro_batch.places)
    return outputs, partial(finish, micro_batch.batch)


def _collect(batch: PackedBatch, outputs: Outputs) -> tuple:
    """For Megatron's schedule: no loss, no tokens to divide by, and the outputs with their places."""
    mask = batch["loss_mask"]
    kept = {name: values[mask] for name, values in outputs.items()}
    return batch[PLACE].new_zeros(()), _NO_TOKENS, (batch[PLACE][mask].cpu(), kept)


def _losses(loss_fn: LossFunction, batch: PackedBatch, outputs: Outputs) -> tuple:
    """For Megatron's schedule: the loss, no tokens to divide by, and the statistics."""
    loss, statistics = loss_fn(batch, outputs)
    statistics = {"loss": loss, **statistics}
    return loss, _NO_TOKENS, {k: v.detach().double() for k, v in statistics.items()}


_NO_TOKENS = torch.tensor(0, dtype=torch.int)  # Megatron divides the gradient by their sum where it is not 0
