"""Where in a parallel layout a rank is, and whether the layout divides a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from areal_mega.config.divisibility import stage_layers
from areal_mega.config.errors import UserError
from areal_mega.resharding.coordinates import Layout
from areal_mega.resharding.layouts.model import Model
from areal_mega.resharding.layouts.table import Split


@dataclass(frozen=True)
class MegatronPlace:
    """A Megatron rank's place.

    vpp: model chunks of each pipeline stage (interleaved schedule). ep and etp divide the routed experts: over ranks,
    and each of them over ranks. first_layers, last_layers: layers of the first and the last stage where they have
    another number than those between (Megatron's num_layers_in_first_pipeline_stage and ..._last_...).
    transformer_engine: the parameters have the names of Megatron's TransformerEngine spec. grouped_experts: the experts
    are TransformerEngine's grouped ones (TEGroupedMLP).
    """

    tp: int = 1
    tp_rank: int = 0
    pp: int = 1
    pp_rank: int = 0
    vpp: int = 1
    ep: int = 1
    ep_rank: int = 0
    etp: int = 1
    etp_rank: int = 0
    first_layers: int | None = None
    last_layers: int | None = None
    transformer_engine: bool = False
    grouped_experts: bool = False

    def layers(self, total: int) -> Iterator[int]:
        """The numbers of this rank's layers, of ``total`` in the model; chunk after chunk."""
        sizes = [size // self.vpp for size in self._stages(total)]
        for chunk in range(self.vpp):
            first = chunk * sum(sizes) + sum(sizes[: self.pp_rank])
            yield from range(first, first + sizes[self.pp_rank])

    def _stages(self, total: int) -> list[int]:
        """Layers of each stage."""
        return stage_layers(total, self.pp, self.first_layers, self.last_layers)

    def check(self, model: Model) -> None:
        """Raises a UserError if the layout does not divide the model: which number, and which choices would work."""
        divided = {"num_attention_heads": model.heads, **_dense(model)}
        if "shared_ffn" in model.sizes:
            divided["shared experts' intermediate_size"] = model.sizes["shared_ffn"]
        _check_tp(self.tp, divided, model, cuts_groups=True)
        _check_experts(model, self.ep)
        if model.experts:
            _divides("etp", self.etp, {"experts' intermediate_size": model.sizes["expert_ffn"]})
        self._check_stages(model.layers)

    def _check_stages(self, total: int) -> None:
        stages = self._stages(total)
        if sum(stages) != total or min(stages) < 1:
            if self.first_layers is None and self.last_layers is None:
                raise UserError(
                    f"pp={self.pp} does not divide the model's num_hidden_layers={total}; pp can be "
                    f"{_listed(_divisors(total))}, or give the first and last stage their own number of layers"
                )
            raise UserError(
                f"pp={self.pp} with first_layers={self.first_layers} and last_layers={self.last_layers} makes stages "
                f"of {', '.join(map(str, stages))} layers, and the model's num_hidden_layers is {total}"
            )
        for layers in set(stages):
            _divides("vpp", self.vpp, {f"layers of a pipeline stage, {total} over pp={self.pp}:": layers})


@dataclass(frozen=True)
class SGLangPlace:
    """An SGLang rank's place in its engine. The ``tp`` ranks divide the routed experts over ``ep`` groups.

    fused_shared_experts: the engine keeps DeepSeek's shared expert among the routed ones (its default on some GPUs;
    ``disable_shared_experts_fusion`` turns it off). cpu: the engine runs on CPUs, where SGLang pads some sizes.
    """

    tp: int = 1
    tp_rank: int = 0
    ep: int = 1
    fused_shared_experts: bool = False
    cpu: bool = False

    @property
    def etp(self) -> int:
        return self.tp // self.ep

    @property
    def ep_rank(self) -> int:
        return self.tp_rank // self.etp

    @property
    def etp_rank(self) -> int:
        return self.tp_rank % self.etp

    def check(self, model: Model) -> None:
        """Raises a UserError if the layout does not divide the model: which number, and which choices would work."""
        divided = {"num_attention_heads": model.heads}
        if not self.cpu:
            divided |= _dense(model)
        if "shared_ffn" in model.sizes and not self.fused_shared_experts:
            divided["shared experts' intermediate_size"] = model.sizes["shared_ffn"]
        _check_tp(self.tp, divided, model, cuts_groups=False)
        _divides("ep", self.ep, {"tp": self.tp})
        _check_experts(model, self.ep)
        if model.experts and not self.cpu:
            _divides("tp / ep", self.etp, {"experts' intermediate_size": model.sizes["expert_ffn"]})


Place = TypeVar("Place", MegatronPlace, SGLangPlace)


def _layouts(places: Sequence[Place], layout_at: Callable[[Place], Layout]) -> list[Layout]:
    made = {place: layout_at(place) for place in dict.fromkeys(places)}
    return [made[place] for place in places]


@dataclass(frozen=True)
class MegatronGrid:
    """All ranks of a training run, in Megatron's default order: tp fastest, then cp, dp and pp.

    dp counts replicas of the dense weights; ep and etp are taken out of the tp * cp * dp ranks of a pipeline stage.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    vpp: int = 1
    first_layers: int | None = None
    last_layers: int | None = None
    transformer_engine: bool = False
    grouped_experts: bool = False

    @property
    def world(self) -> int:
        return self.tp * self.pp * self.dp * self.cp

    def with_uneven_stages(self, layers: int) -> MegatronGrid:
        """The same, where pp does not divide ``layers``: with fewer layers in the first and the last stage."""
        if layers % self.pp == 0 or self.first_layers or self.last_layers:
            return self
        outer = layers - -(-layers // self.pp) * (self.pp - 2)
        return replace(self, first_layers=outer - outer // 2, last_layers=outer // 2)

    def places(self) -> list[MegatronPlace]:
        """Of each rank.

        Raises:
            UserError: ep * etp does not divide the ranks of a stage.
        """
        stage = self.world // self.pp
        if stage % (self.ep * self.etp):
            raise UserError(
                f"ep={self.ep} times etp={self.etp} must divide tp * cp * dp = {stage} ranks of a pipeline stage; "
                f"with etp={self.etp}, ep can be {_listed([n for n in _divisors(stage) if not stage % (n * self.etp)])}"
            )
        return [self._place(rank, stage) for rank in range(self.world)]

    def layouts(self, layout_at: Callable[[MegatronPlace], Layout]) -> list[Layout]:
        """Of each rank; ranks at the same place share one. layout_at: makes the layout of a place."""
        return _layouts(self.places(), layout_at)

    def _place(self, rank: int, stage: int) -> MegatronPlace:
        return MegatronPlace(
            tp=self.tp,
            tp_rank=rank % self.tp,
            pp=self.pp,
            pp_rank=rank // stage,
            vpp=self.vpp,
            ep=self.ep,
            ep_rank=rank % stage // self.etp % self.ep,
            etp=self.etp,
            etp_rank=rank % self.etp,
            first_layers=self.first_layers,
            last_layers=self.last_layers,
            transformer_engine=self.transformer_engine,
            grouped_experts=self.grouped_experts,
        )


@dataclass(frozen=True)
class SGLangGrid:
    """``count`` engines of ``tp`` ranks each, engine after engine."""

    tp: int = 1
    ep: int = 1
    count: int = 1
    fused_shared_experts: bool = False
    cpu: bool = False

    @property
    def world(self) -> int:
        return self.tp * self.count

    def places(self) -> list[SGLangPlace]:
        """Of each rank."""
        engine = [SGLangPlace(self.tp, rank, self.ep, self.fused_shared_experts, self.cpu) for rank in range(self.tp)]
        return engine * self.count

    def layouts(self, layout_at: Callable[[SGLangPlace], Layout]) -> list[Layout]:
        """Of each rank; ranks at the same place share one. layout_at: makes the layout of a place."""
        return _layouts(self.places(), layout_at)


def _dense(model: Model) -> dict[str, int]:
    return {"intermediate_size": model.sizes["ffn"]} if model.has_dense_layers else {}


def _check_tp(tp: int, divided: dict[str, int], model: Model, *, cuts_groups: bool) -> None:
    """divided: sizes that tp must divide. cuts_groups: beyond the number of query groups, the rows of q, k and v
    together are divided too."""
    rows = model.sizes["queries"] + 2 * model.sizes["keys"]

    def problem(tp: int) -> str:
        for name, size in divided.items():
            if size % tp:
                return f"does not divide the model's {name}={size}"
        if model.uses(Split.HEADS):
            if tp % model.groups and model.groups % tp:
                return f"and the model's num_key_value_heads={model.groups}: one must divide the other"
            if cuts_groups and tp > model.groups and rows % tp:
                return f"does not divide the {rows} rows of the model's q, k and v together"
        return ""

    if found := problem(tp):
        raise UserError(f"tp={tp} {found}; tp can be {_listed([n for n in _divisors(model.heads) if not problem(n)])}")


def _check_experts(model: Model, ep: int) -> None:
    if model.experts:
        _divides("ep", ep, {"number of experts": model.experts})
    elif ep > 1:
        raise UserError(f"ep={ep}: the model has no experts; ep can be 1")


def _divides(option: str, value: int, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        if size % value:
            choices = [n for n in _divisors(size) if not any(other % n for other in sizes.values())]
            raise UserError(
                f"{option}={value} does not divide the model's {name}={size}; {option} can be {_listed(choices)}"
            )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _listed(numbers: Sequence[Any]) -> str:
    *most, last = (str(number) for number in numbers)
    return f"{', '.join(most)} or {last}" if most else last
