"""The ``routing:`` section of a scenario."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from moeplan.files.scenario.schema_types import Count, CountOrZero, Section, Text, choice, one_of, quantity, whole

Exponent = Annotated[float, quantity("count", least=0.0, most=4.0)]


class PopularityFile(Section):
    """How often each expert is chosen; every MoE layer has its own draw of a law, or its own row of a histogram."""

    shorthand = "law"
    exclusive = ("law", "histogram")
    law: Annotated[str, choice("uniform", "zipf", "dirichlet", "lognormal")] | None = Field(
        default=None, description="Law that the selection weights of a layer's experts are drawn from."
    )
    value: Annotated[float, quantity("count", least=0.0, most=1000.0)] | None = Field(
        default=None,
        description="zipf: exponent; lognormal: standard deviation of the logarithm (both at most 4); dirichlet: "
        "concentration of 0.01 to 1000 (its coefficient of variation is concentration^-1/2).",
    )
    group_spread: Exponent = Field(
        default=0.0,
        description="lognormal: part of the standard deviation that the experts of one of the gate's groups share.",
    )
    histogram: Text | None = Field(
        default=None,
        description="CSV file of recorded selections with the columns layer, expert, count: one layer for all, or "
        "every MoE layer of the model, or a few that are repeated.",
    )

    @model_validator(mode="after")
    def _one(self) -> PopularityFile:
        one_of(self, *self.exclusive)
        return self


class CorrelationFile(Section):
    """Tokens that follow each other share experts, because they share a topic."""

    topics: Annotated[int, whole(1, 256)] = Field(description="Number of topics.")
    spread: Exponent = Field(description="Standard deviation of the log of a topic's preference for an expert.")
    tokens: Count = Field(description="Consecutive tokens of one topic.")


class BalanceFile(Section):
    """A controller that acts on popularity after every training step; steps are those of a run that has settled."""

    shorthand = "method"
    method: Annotated[str, choice("none", "aux_loss", "loss_free")] = Field(
        default="none",
        description="aux_loss: weights move against the excess load; loss_free: by a fixed step against its sign "
        "(arXiv:2408.15664).",
    )
    rate: Annotated[float, quantity("count", least=0.0, most=10.0)] = Field(
        default=0.001, description="Change of the log weight per step (per unit of relative excess under aux_loss)."
    )


class RoutingFile(Section):
    """How uneven tokens spread over the routed experts, and where those lie."""

    shorthand = "preset"
    exclusive = ("preset", "popularity", "zipf")
    preset: Text | None = Field(
        default=None, description="A sourced popularity of a model family (moeplan/data/routing)."
    )
    popularity: PopularityFile | None = Field(default=None, description="Popularity of experts in service.")
    zipf: Exponent | None = Field(
        default=None,
        description="Expert popularity ~ rank^-zipf; 0 is balanced. Default, fitted to recorded routing: 0.5, and 0.2 "
        "for models of at most 16 experts (moeplan/data/routing.yaml).",
    )
    training_zipf: Exponent | None = Field(
        default=None,
        description="The same while training. Default: what is stated above, otherwise 0.2, an estimate.",
    )
    router: Annotated[str, choice("top_k", "expert_choice", "hash")] = Field(
        default="top_k",
        description="top_k: the model's gate, with its group limits; expert_choice: every expert takes an equal "
        "number of tokens (arXiv:2202.09368); hash: by token id, popularity is then that of the vocabulary "
        "(arXiv:2106.04426).",
    )
    top_k: Count | None = Field(
        default=None,
        description="Experts per token instead of the model's own: another quality, which is yours to judge.",
    )
    capacity_factor: Annotated[float, quantity("count", least=1.0, most=1000.0)] | None = Field(
        default=None,
        description="Most tokens an expert takes of one GPU's, over its even share; the rest is dropped. "
        "Default: nothing is dropped.",
    )
    drop: Annotated[str, choice("order", "priority")] = Field(
        default="order", description="What is dropped: the last to come, or the lowest score."
    )
    correlation: CorrelationFile | None = Field(default=None, description="Default: tokens are independent.")
    drift_half_life: Count | None = Field(
        default=None,
        description="Steps after which half of the log popularity is new. Times, memory and cost are then "
        "those of a long run.",
    )
    balance: BalanceFile = Field(default=BalanceFile(), description="Balancing while training.")
    placement: Annotated[str, choice("contiguous", "round_robin", "greedy", "hierarchical")] = Field(
        default="contiguous",
        description="Experts to GPUs; greedy and hierarchical balance the expected load (EPLB), hierarchical first "
        "over scale-up domains.",
    )
    placement_map: list[list[CountOrZero]] | None = Field(
        default=None, max_length=100_000, description="Experts (from 0) that each GPU holds, in place of `placement`."
    )
    redundant_experts: CountOrZero = Field(
        default=0, description="Expert slots beyond one per expert, for copies of loaded ones, in service."
    )
    rebalance: Count | None = Field(
        default=None,
        description="Steps between new placements under drift, by the loads since the last; default: placed "
        "once, long ago.",
    )

    @model_validator(mode="after")
    def _one(self) -> RoutingFile:
        if any(getattr(self, key) is not None for key in self.exclusive):
            one_of(self, *self.exclusive)
        return self
