"""Megatron's GPTModel for packed sequences, with our heads in the place of its logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from megatron.core import parallel_state
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.models.gpt import GPTModel
from torch import Tensor
from transformers import PretrainedConfig

from areal_mega.data.packed import PackedBatch
from areal_mega.ops import linear_logprob
from areal_mega.policy.attention import PackedSequences
from areal_mega.policy.head import ValueHead
from areal_mega.policy.spec import inverse_frequencies, layer_spec, rotary_base, transformer_config
from areal_mega.runtime.distributed import Topology

Head = Literal["logprob", "value"]
OUTPUTS: dict[Head, tuple[str, ...]] = {"logprob": ("logprobs", "entropy"), "value": ("values",)}


@dataclass(frozen=True)
class Selection:
    """The S tokens a head answers for. at: ``[S]`` places in the micro-batch. targets: ``[S]`` their ids."""

    at: Tensor
    targets: Tensor

    @classmethod
    def of(cls, batch: PackedBatch, device: torch.device) -> Selection:
        """The tokens of ``batch`` with ``loss_mask``.

        Raises:
            ValueError: the mask includes the first token of a sequence, which nothing predicts.
        """
        mask = batch["loss_mask"]
        starts = batch.cu_seqlens[:-1][batch.lengths > 0].long()
        if mask[starts].any():
            raise ValueError("loss_mask is True on the first token of a sequence, which has no prediction")
        at = mask.nonzero().squeeze(1)
        return cls(at.to(device), batch.tokens[at].to(device))


class PackedGPT(GPTModel):
    """One pipeline stage. The last returns the head's outputs ``[T]`` by name, the others hidden states."""

    def __init__(
        self,
        hf: PretrainedConfig,
        topology: Topology,
        *,
        dtype: torch.dtype,
        head: Head,
        temperature: float,
        logprob_workspace: int | None,
        seed: int,
    ) -> None:
        config = transformer_config(hf, topology, dtype)
        super().__init__(
            config=config,
            transformer_layer_spec=layer_spec(config),
            vocab_size=-(-hf.vocab_size // topology.tp) * topology.tp,
            max_sequence_length=hf.max_position_embeddings,
            pre_process=topology.pp_rank == 0,
            post_process=topology.is_last_stage,
            parallel_output=True,
            share_embeddings_and_output_weights=hf.tie_word_embeddings and head == "logprob",
            position_embedding_type="rope",
            rotary_base=rotary_base(hf),
        )
        scaled = inverse_frequencies(hf)
        if scaled is not None:
            self.rotary_pos_emb.inv_freq = scaled.to(topology.device)
        self.true_vocab_size = hf.vocab_size
        self.head, self.temperature, self.logprob_workspace = head, temperature, logprob_workspace
        if head == "value" and self.post_process:
            del self.output_layer
            self.value_head = ValueHead(hf.hidden_size, dtype, topology.device, seed)

    def forward(self, tokens: Tensor, packed: PackedSequences, selection: Selection) -> Any:
        """tokens: ``[T]``."""
        # What GPTModel calls labels goes unseen to _postprocess.
        return super().forward(tokens[None], None, None, packed_seq_params=packed, labels=selection)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """Every parameter with its place in the whole model, for Megatron's checkpoints."""
        # GPTModel's own method looks for the output layer, which a value head has replaced.
        if self.head == "value":
            return super(LanguageModule, self).sharded_state_dict(prefix, sharded_offsets, metadata)
        return super().sharded_state_dict(prefix, sharded_offsets, metadata)

    def _preprocess(self, *args: Any, packed_seq_params: PackedSequences, **kwargs: Any) -> tuple:
        decoder_input, rotary, *rest = super()._preprocess(*args, packed_seq_params=packed_seq_params, **kwargs)
        return decoder_input, rotary[packed_seq_params.positions], *rest

    def _postprocess(self, hidden_states: Tensor, labels: Selection, **_: Any) -> Any:
        """The hidden state before each selected token, put through the head."""
        if not self.post_process:
            return hidden_states
        hidden = hidden_states.squeeze(1)
        before = hidden[labels.at - 1]
        values = (self.value_head(before),) if self.head == "value" else self._logprob(before, labels.targets)
        aligned = (v.new_zeros(len(hidden)).index_put((labels.at,), v) for v in values)
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
