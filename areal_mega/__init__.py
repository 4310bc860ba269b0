"""Reinforcement learning for large language models: Megatron-Core trains, SGLang generates."""

__version__ = "0.1.0"
