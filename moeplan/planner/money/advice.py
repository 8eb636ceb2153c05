"""How big for this money: what published scaling laws suggest beside the user's own choice."""

from __future__ import annotations

from collections.abc import Iterable

from moeplan.costs.scaling import (
    Choice,
    dense_equivalent_params,
    loss,
    optimum,
)
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.plan import AdviceResult
from moeplan.spec.plan_money import LawAdvice
from moeplan.spec.scaling import ScalingLaw
from moeplan.units import format_tokens


def advice(
    model: ModelArchitecture,
    tokens: float,
    laws: Iterable[ScalingLaw],
    *,
    run_flop: float,
    run_usd: float,
    limit_usd: float | None,
    served_tokens: float = 0.0,
    served_usd: float = 0.0,
) -> AdviceResult:
    """Every law's least loss for the same money.

    ``run_flop`` of training cost ``run_usd``: a FLOP of training has a price. Serving ``served_tokens`` costs
    ``served_usd`` with this model, taken to grow with active parameters. ``limit_usd`` pays for both; without it what
    the scenario spends is the budget.
    """
    embedding = model.n_embedding_params
    own = Choice(model.n_params_active - embedding, model.n_params_total - embedding, tokens)
    flop_per_usd = run_flop / run_usd
    budget_flop = (run_usd + served_usd if limit_usd is None else limit_usd) * flop_per_usd
    served_per_param = served_usd * flop_per_usd / own.active_params
    rows = tuple(_row(law, own, model, budget_flop, served_per_param) for law in laws)
    return AdviceResult(
        training_flop=budget_flop,
        served_tokens=served_tokens,
        own_active_params=own.active_params,
        own_total_params=own.total_params,
        own_tokens=tokens,
        laws=rows,
        text=_text(rows, own, budget_flop, served_tokens),
    )


def _row(
    law: ScalingLaw, own: Choice, model: ModelArchitecture, budget_flop: float, served_per_param: float
) -> LawAdvice:
    best = optimum(law, budget_flop, served_per_param)
    equal = None
    if best is None:
        blocks = model.moe_blocks
        experts = sum(b.n_experts / b.top_k for b in blocks) / len(blocks) if blocks else 1.0
        equal = dense_equivalent_params(law, own.active_params, experts)
    at = own if best is None else best
    bounds = (
        (at.active_params, law.active_params, "active parameters"),
        (at.total_params, law.total_params, "total parameters"),
        (at.tokens, law.tokens, "tokens"),
    )
    known = [(value, ends, what) for value, ends, what in bounds if ends is not None]
    return LawAdvice(
        law=law.name,
        source=law.source,
        active_params=None if best is None else best.active_params,
        total_params=None if best is None else best.total_params,
        sparsity_frac=None if best is None else best.sparsity_frac,
        tokens=None if best is None else best.tokens,
        loss=None if best is None else loss(law, best),
        own_loss=loss(law, own),
        dense_equivalent_params=equal,
        inside_range=bool(known) and all(low <= value <= high for value, (low, high), _ in known),
        range="; ".join(f"{what} {low:.3g} to {high:.3g}" for _, (low, high), what in known) or "not known",
        spread=law.spread,
    )


def _text(rows: tuple[LawAdvice, ...], own: Choice, budget_flop: float, served_tokens: float) -> str:
    sized = [row for row in rows if row.active_params is not None and row.tokens is not None]
    active = sorted(row.active_params for row in sized if row.active_params is not None)
    tokens = sorted(row.tokens for row in sized if row.tokens is not None)
    outside = sum(not row.inside_range for row in sized)
    served = f" and {format_tokens(served_tokens)} served tokens" if served_tokens else ""
    return (
        f"How big for this money: {budget_flop:.2g} FLOP of training{served}; {len(sized)} published scaling laws put "
        f"the least loss at {format_tokens(active[0])} to {format_tokens(active[-1])} active parameters and "
        f"{format_tokens(tokens[0])} to {format_tokens(tokens[-1])} tokens; yours: {format_tokens(own.active_params)} "
        f"active of {format_tokens(own.total_params)}, {format_tokens(own.tokens)} tokens. Advice, not a promise of "
        f"quality{f'; {outside} of them beyond their experiments' if outside else ''} (docs/method/scaling-laws.md)."
    )
