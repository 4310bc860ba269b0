"""The layouts that parity is measured in: one table, grouped by the number of ranks they need."""

from __future__ import annotations

from typing import Any

DENSE = ("qwen3", "qwen2", "llama")
MIXTURES = ("qwen3_moe", "mixtral", "deepseek_v3")
LATENT = ("deepseek_v2", "deepseek_v3")

Layout = dict[str, Any]  # policy options below policy.parallel, and under "policy" those above

# Name: ranks, parallel options, families.
LAYOUTS: dict[str, tuple[int, Layout, tuple[str, ...]]] = {
    "TP1": (1, {}, DENSE),
    "TP2": (2, {"tensor": 2}, DENSE),
    "PP2": (2, {"pipeline": 2}, DENSE),
    "DP2": (2, {}, DENSE),
    "TP2+SP": (2, {"tensor": 2, "sequence": True}, DENSE),
    "PP2xVPP2": (2, {"pipeline": 2, "virtual_pipeline": 2}, DENSE),
    "CP2": (2, {"context": 2}, DENSE),
    "TP2xPP2+SP": (4, {"tensor": 2, "pipeline": 2, "sequence": True}, DENSE),
    "TP2xDP2": (4, {"tensor": 2}, ("qwen2",)),
    "DP2xPP2": (4, {"pipeline": 2}, ("llama",)),
    "PP4": (4, {"pipeline": 4}, ("qwen3", "llama")),
    "TP2xCP2": (4, {"tensor": 2, "context": 2}, ("qwen3",)),
}
