"""How long the steps of a run take on paper, synchronous or asynchronous: a simulation of events.

What may be started when is decided by the very class that decides it in a run, `StalenessManager`.
"""

from areal_mega.rollout.simulation.cluster import Cluster, Outcome, simulate
from areal_mega.rollout.simulation.costs import GPUS, Costs, Gpu
from areal_mega.rollout.simulation.lengths import log_normal, read_lengths

__all__ = ["GPUS", "Cluster", "Costs", "Gpu", "Outcome", "log_normal", "read_lengths", "simulate"]
