"""Megatron's GPTModel for packed sequences, with our heads in the place of its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core import parallel_state
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from torch import Tensor
from transformers import PretrainedConfig

from areal_mega.data.packed import PackedBatch
from areal_mega.ops import linear_logprob
from areal_mega.policy.head import ValueHead
from areal_mega.policy.packing import PackedSequences
from areal_mega.policy.rotary import PackedRotary, rope_of
from areal_mega.policy.spec import layer_spec
from areal_mega.runtime.distributed import Topology

Head = Literal["logprob", "value"]
OUTPUTS: dict[Head, tuple[str, ...]] = {"logprob": ("logprobs", "entropy"), "value": ("values",)}


@dataclass(frozen=True)
class Selection:
    """The S tokens a head answers for: those whose predecessor is one of this rank's rows.

    rows: ``[S]`` the predecessors' rows. at: ``[S]`` places in the micro-batch of ``size`` tokens. targets: ``[S]``
    ids of the tokens.
    """

    rows: Tensor
    at: Tensor
    targets: Tensor
    size: int

    @classmethod
    def of(cls, batch: PackedBatch, packed: PackedSequences) -> Selection:
        """The tokens of ``batch`` (on the CPU) with ``loss_mask``.

        Raises:
            ValueError: the mask includes the first token of a sequence, which nothing predicts.
        """
        mask = batch["loss_mask"]
        starts = batch.cu_seqlens[:-1][batch.lengths > 0].long()
        if mask[starts].any():
            raise ValueError("loss_mask is True on the first token of a sequence, which has no prediction")
        real, device = packed.real.cpu(), packed.tokens.device
        row_of = torch.full((batch.num_tokens,), -1)
        row_of[packed.tokens.cpu()[real]] = real.nonzero().squeeze(1)
        at = mask.nonzero().squeeze(1)
        rows = row_of[at - 1]
        at, rows = at[rows >= 0], rows[rows >= 0]
        return cls(rows.to(device), at.to(device), batch.tokens[at].to(device), batch.num_tokens)


class PackedGPT(GPTModel):
    """The layers of one pipeline stage, or of one of its model chunks.

    The last returns the head's outputs ``[T]`` by name, on all ranks of TP and CP; the others hidden states.
    """

    def __init__(
        self,
        hf: PretrainedConfig,
        config: TransformerConfig,
        topology: Topology,
        *,
        chunk: int,
        head: Head,
        temperature: float,
        logprob_workspace: int | None,
        seed: int,
    ) -> None:
        vp_stage = chunk if topology.vpp > 1 else None
        super().__init__(
            config=config,
            transformer_layer_spec=layer_spec(config, vp_stage),
            vocab_size=-(-hf.vocab_size // topology.tp) * topology.tp,
            max_sequence_length=hf.max_position_embeddings,
            pre_process=topology.pp_rank == 0 and chunk == 0,
            post_process=topology.is_last_stage and chunk == topology.vpp - 1,
            parallel_output=True,
            share_embeddings_and_output_weights=hf.tie_word_embeddings and head == "logprob",
            position_embedding_type="rope",
            rotary_base=rope_of(hf)["rope_theta"],
            vp_stage=vp_stage,
        )
        self._set_rotary(hf)
        self.true_vocab_size = hf.vocab_size
        self.head, self.temperature, self.logprob_workspace = head, temperature, logprob_workspace
        if not self.post_process:
            return
        if head == "value":
            del self.output_layer
            self.value_head = ValueHead(hf.hidden_size, config.params_dtype, topology.device, seed)
        else:  # still called as a module: that is how Megatron knows that its weight is needed now
            self.output_layer.forward = self._logprob

    def _set_rotary(self, hf: PretrainedConfig) -> None:
        if not self.config.multi_latent_attention:
            self.rotary_pos_emb = PackedRotary(hf)
            return
        rotary = PackedRotary(hf, latent=True, with_scale=self.config.rope_type == "yarn")
        for layer in self.decoder.layers:
            layer.self_attention.rotary_pos_emb = rotary

    def forward(self, tokens: Tensor, packed: PackedSequences, selection: Selection, places: Tensor | None) -> Any:
        """tokens: ``[T]``. places: ``[l]`` of this rank's rows in the step's batch, for routers."""
        # What GPTModel calls labels goes unseen to _postprocess, and what it calls padding to the routers.
        self._places = places
        return super().forward(tokens[packed.tokens][None], None, None, packed_seq_params=packed, labels=selection)

    def _preprocess(self, *args: Any, **kwargs: Any) -> tuple:
        *before, _ = super()._preprocess(*args, **kwargs)
        return *before, None if self._places is None else self._places[None]

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """Every parameter with its place in the whole model, for Megatron's checkpoints."""
        # GPTModel's own method looks for the output layer, which a value head has replaced.
        if self.head == "value":
            return super(LanguageModule, self).sharded_state_dict(prefix, sharded_offsets, metadata)
        return super().sharded_state_dict(prefix, sharded_offsets, metadata)

    def _postprocess(self, hidden_states: Tensor, labels: Selection, **_: Any) -> Any:
        """The hidden state before each selected token, put through the head."""
        if not self.post_process:
            return hidden_states
        if self.config.sequence_parallel:
            # The heads' gradient is whole on every TP rank, so that each takes its own rows of it.
            hidden_states = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=False)
        before = hidden_states.squeeze(1)[labels.rows]
        values = (self.value_head(before),) if self.head == "value" else self.output_layer(before, labels.targets)
        aligned = (_of_all_context_ranks(v.new_zeros(labels.size).index_put((labels.at,), v)) for v in values)
        return dict(zip(OUTPUTS[self.head], aligned, strict=True))

    def _logprob(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        shared = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if shared else self.output_layer.weight
        return linear_logprob(
            hidden,
            weight,
            targets,
            temperature=self.temperature,
            vocab_size=self.true_vocab_size,
            group=parallel_state.get_tensor_model_parallel_group(),
            workspace_bytes=self.logprob_workspace,
        )


def _of_all_context_ranks(x: Tensor) -> Tensor:
    """The sum over CP ranks, of which each has other places filled. Every rank computes the same loss of it, and its
    own places' gradient goes back."""
    group = parallel_state.get_context_parallel_group()
    return x if group.size() == 1 else reduce_from_tensor_model_parallel_region(x, group=group)
