"""What the memory of a training rank is spent on, calculated from layouts; activations are an estimate.

Formulas, in bytes; e is the size of a parameter (2 in bfloat16):

- parameters: e for each. gradients: 4, as Megatron's buffers are float32. optimizer states: 4 + 4 for Adam's moments,
  and 4 for the float32 copy where parameters are bfloat16, over the data-parallel ranks (distributed optimizer).
- activations of a token in a layer, no dropout, flash attention: e * [4 h s + (2 q + 2 k + 3 f) / t], which are the
  inputs of both norms and what they put out, queries, keys, values and attention's output, and gate, up and their
  product; h, q, k, f: sizes of hidden state, queries, keys and MLP; t: TP; s: 1/t with sequence parallel, else 1. Of
  experts a token has topk MLPs and as many copies of the hidden state. (Counted as in Korthikanti et al., "Reducing
  Activation Recomputation in Large Transformer Models", arXiv 2205.05198, section 4, for this layer.)
- full recomputation: e h s for every so many layers, and one such group as above. Selective is counted as none.
- a pipeline stage p of P holds P - p micro-batches; interleaved, 2 (P - p - 1) + (V - 1) P + 1 chunks (Narayanan et
  al., arXiv 2104.04473, and Megatron's schedule).
"""

from __future__ import annotations

from math import ceil, prod
from typing import Any

from areal_mega.config.divisibility import experts_of
from areal_mega.config.dtypes import DTYPES
from areal_mega.config.options import CommonOptions, PolicyOptions
from areal_mega.resharding.coordinates import Layout

GPU_WORKSPACE_MB = 1024  # policy.logprob_workspace_mb=0, on a GPU


def parameter_counts(layout: Layout) -> tuple[int, int]:
    """Elements of a rank's dense parameters and of its experts', padding included."""
    counts = {name: prod(shape) for name, shape in layout.shapes.items()}
    experts = sum(count for name, count in counts.items() if ".experts." in name)
    return sum(counts.values()) - experts, experts


def model_bytes(layout: Layout, options: CommonOptions, ranks: int) -> dict[str, float]:
    """Parameters, gradients and optimizer states of one trained model on one rank."""
    p = options.policy.parallel
    dense, experts = parameter_counts(layout)
    size = DTYPES[options.model.dtype].itemsize
    state = 8 + (4 if size < 4 else 0)
    stage = ranks // p.pipeline
    copies, expert_copies = stage // p.tensor, stage // (p.expert * (p.expert_tensor or p.tensor))
    return {
        "parameters": (dense + experts) * size,
        "gradients": (dense + experts) * 4,
        "optimizer states": state * (dense / copies + experts / expert_copies),
    }


def layer_bytes_per_token(hf: Any, options: PolicyOptions, size: int) -> float:
    """Activations of one layer, without recomputation."""
    p = options.parallel
    head = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    attention = 2 * head * (hf.num_attention_heads + hf.num_key_value_heads)
    mlp = 3 * hf.intermediate_size
    if experts_of(vars(hf)):
        width = getattr(hf, "moe_intermediate_size", None) or hf.intermediate_size
        mlp = hf.num_experts_per_tok * (hf.hidden_size + 3 * width)
    return size * (4 * hf.hidden_size * _sequence_share(options) + (attention + mlp) / p.tensor)


def activation_bytes(hf: Any, options: PolicyOptions, stage: int, size: int) -> float:
    """The most that a pipeline stage holds at a time, with micro-batches that fill their budget of tokens."""
    p, r = options.parallel, options.recompute
    tokens = options.max_tokens_per_micro_batch / p.context
    layers = ceil(hf.num_hidden_layers / p.pipeline) / p.virtual_pipeline
    whole = layer_bytes_per_token(hf, options, size)
    in_flight = 2 * (p.pipeline - stage - 1) + (p.virtual_pipeline - 1) * p.pipeline + 1
    if p.virtual_pipeline == 1:
        in_flight = p.pipeline - stage
    if r.mode != "full":
        return tokens * in_flight * layers * whole
    group = min(r.layers, layers)
    kept = size * hf.hidden_size * _sequence_share(options)
    return tokens * (in_flight * layers / group * kept + group * whole)


def workspace_bytes(options: PolicyOptions) -> int:
    """Logits that exist at the same time, on the last stage."""
    return (options.logprob_workspace_mb or GPU_WORKSPACE_MB) << 20


def _sequence_share(options: PolicyOptions) -> float:
    return 1 / options.parallel.tensor if options.parallel.sequence else 1.0
