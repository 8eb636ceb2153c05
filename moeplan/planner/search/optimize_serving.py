"""Every layout of a serving deployment: enumerated, assessed at once (stage one), simulated one by one (stage two)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moeplan import metrics
from moeplan.costs.money import Usage, bill
from moeplan.errors import input_error
from moeplan.files.scenario.question import Question
from moeplan.files.scenario.resolve_checks import serving_layout_problems
from moeplan.files.scenario.schema_search import OptimizeFile
from moeplan.planner.money.finance import finance
from moeplan.planner.money.money import reported
from moeplan.planner.plan import judge
from moeplan.planner.search.search_space import Priced, Site, powers_of_two
from moeplan.planner.search.serving_bounds import Demand, ReplicaTimes, assess, demand_of
from moeplan.planner.serving import plan_serving
from moeplan.simulate.deployment import Deployment
from moeplan.simulate.serving import EventLog
from moeplan.spec.layout import ServingLayout
from moeplan.spec.plan import Verdict
from moeplan.spec.scenario import Scenario, Serving
from moeplan.steps.compiled import compile_step_table
from moeplan.steps.memory import serving_memory_by_limits
from moeplan.steps.serving import ServingStep
from moeplan.steps.table import StepTable

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SEQS = (16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (2048, 4096, 8192, 16384)
TARGETS = ("ttft", "tpot", "e2e")


@dataclass(frozen=True, slots=True)
class Shape:
    """One replica's layout on one site, with the engine's defaults for its tp."""

    site: Site
    scenario: Scenario  # resolved with this tp
    layout: ServingLayout  # replicas 1
    room: tuple[str, ...]  # raises the scenario's own number of GPUs where the search has more
    pool_follows: bool = True  # a prefill pool has the engine's limits, none of its own

    @property
    def serving(self) -> Serving:
        if self.scenario.serving is None:
            raise ValueError(f"{self.scenario.name}: does not serve")
        return self.scenario.serving

    @property
    def pool_gpus(self) -> int:
        """GPUs of the prefill pool beside the replicas."""
        pool = self.serving.prefill
        return 0 if pool is None else pool.layout.n_gpus


@dataclass(frozen=True, slots=True, eq=False)
class Layouts:
    """All layouts as columns, shape (n,). ``shape`` and ``offer`` are indices; money is NaN where nobody offers."""

    shapes: list[Shape]
    shape: Ints
    tokens: Ints
    seqs: Ints
    replicas: Ints
    n_gpus: Ints
    offer: Ints
    usd_per_month: Array
    fits: npt.NDArray[np.bool_]
    kv_tokens: Array
    capacity_most: Array
    ttft_least: Array
    tpot_least: Array
    e2e_least: Array
    capacity: Array
    ttft: Array
    tpot: Array
    e2e: Array
    requests_per_s: Array

    def __len__(self) -> int:
        return int(self.shape.size)


def assess_layouts(question: Question, search: OptimizeFile, found: list[Site], most_gpus: int) -> Layouts:
    """Stage one over the whole space. Raises InputError when no layout suits the model and the machines."""
    shapes: list[Shape] = []
    columns: list[dict[str, npt.NDArray[np.generic]]] = []
    for site in found:
        demand: Demand | None = None
        times: dict[tuple[int, int, int], ReplicaTimes] = {}
        by_tp: dict[int, StepTable] = {}
        prices = _prices(site, most_gpus)
        for shape in _shapes(question, search, site, most_gpus):
            demand = demand or demand_of(shape.serving, shape.scenario.seed)
            columns.append(_assessed(shape, len(shapes), search, demand, times, by_tp, prices, most_gpus))
            shapes.append(shape)
    if not shapes:
        raise input_error("optimize", "an empty space: no layout suits the model, the machines and the GPUs there are")
    joined = {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}
    return Layouts(shapes, **joined)  # type: ignore[arg-type]


def _shapes(question: Question, search: OptimizeFile, site: Site, most_gpus: int) -> Iterator[Shape]:
    """Layouts of one replica that suit the model and the machine, in a fixed order."""
    model, hardware = site.scenario.model, site.scenario.hardware
    price = (site.offers[0].override,) if site.offers and site.offers[0].override else ()
    pool = 0 if site.scenario.serving is None else site.scenario.serving.n_gpus - 1  # beside the neutral replica
    follows = question.value("serving.prefill.max_num_seqs") is None
    follows = follows and question.value("serving.prefill.max_num_batched_tokens") is None
    stated_gpus = question.value("gpus")
    room = (f"gpus={most_gpus}",) if stated_gpus is not None and stated_gpus != most_gpus else ()
    for tp in search.tp or [n for n in powers_of_two(most_gpus) if n <= max(hardware.n_gpus_scale_up, 1)]:
        scenario = None
        for pp in search.pp or powers_of_two(most_gpus // tp):
            for dp in search.dp or powers_of_two(most_gpus // (tp * pp)):
                if tp * pp * dp > most_gpus:
                    continue
                spreads = search.ep or (powers_of_two(tp * dp) if model.is_moe else [1])
                for ep in spreads:
                    layout = ServingLayout(tp, pp, dp, ep, 1)
                    if (tp * dp) % ep or tp * pp * dp + pool > most_gpus:
                        continue
                    if serving_layout_problems(layout, model, hardware):
                        continue
                    if scenario is None:
                        degrees = zip(("tp", "pp", "dp", "ep", "replicas"), (tp, pp, dp, ep, 1), strict=True)
                        stated = [f"serving.layout.{key}={n}" for key, n in degrees]
                        scenario = question.scenario([*site.overrides, *price, *stated, *room])
                    yield Shape(site, scenario, layout, room, follows)


def _limits(search: OptimizeFile, serving: Serving) -> tuple[Array, Array]:
    own = serving.engine
    seqs = search.max_num_seqs or sorted({*_SEQS, own.max_num_seqs})
    tokens = search.max_num_batched_tokens or sorted({*_TOKENS, own.max_num_batched_tokens})
    return np.array(seqs, dtype=np.float64), np.array(tokens, dtype=np.float64)


def _prices(site: Site, most_gpus: int) -> tuple[Array, Ints]:
    """Least cost of a month and the offer that has it, by the number of GPUs (index 0 is none).

    Energy, stored bytes and traffic, which depend on more, come on top: a lower bound.
    """
    if not site.offers:
        return np.full(most_gpus + 1, np.nan), np.full(most_gpus + 1, -1)

    def month(priced: Priced, n: int) -> float:
        return reported(bill(priced.money, Usage(n, priced.money.hours_per_month)))[1]

    table = np.array([[month(priced, n) for priced in site.offers] for n in range(most_gpus + 1)])
    return table.min(axis=1), table.argmin(axis=1)


def _assessed(
    shape: Shape,
    index: int,
    search: OptimizeFile,
    demand: Demand,
    known: dict[tuple[int, int, int], ReplicaTimes],
    by_tp: dict[int, StepTable],
    prices: tuple[Array, Ints],
    most_gpus: int,
) -> dict[str, npt.NDArray[np.generic]]:
    """Columns of one shape: batch limits x replicas."""
    s, layout, scenario = shape.serving, shape.layout, shape.scenario
    seqs, tokens = _limits(search, s)
    allowed = (most_gpus - shape.pool_gpus) // layout.n_gpus_per_replica
    replicas = np.array([n for n in search.replicas or range(1, allowed + 1) if n <= allowed], dtype=np.float64)
    t, q, r = (x.ravel() for x in np.meshgrid(tokens, seqs, replicas, indexing="ij"))
    pairs = t >= q  # fewer tokens than sequences in an iteration is no setting
    t, q, r = t[pairs], q[pairs], r[pairs]
    need, kv = serving_memory_by_limits(
        scenario.model,
        scenario.hardware,
        layout,
        s.precision,
        s.engine,
        max_num_batched_tokens=tokens[:, None],
        max_num_seqs=seqs[None, :],
        max_context_tokens=s.max_context_tokens,
        mean_context_tokens=demand.context_tokens,
        routing=scenario.routing,
    )
    at = np.searchsorted(tokens, t), np.searchsorted(seqs, q)
    kv_tokens = kv[at]
    fits = need[at] <= scenario.hardware.device.memory_bytes * s.engine.memory_utilization_frac
    columns: dict[str, npt.NDArray[np.generic]] = {}
    names = ("capacity_most", "ttft_least", "tpot_least", "e2e_least",
             "capacity", "ttft", "tpot", "e2e", "requests_per_s")  # fmt: skip
    if fits.any():
        key = layout.tp, layout.dp, layout.ep
        if key not in known:
            known[key] = ReplicaTimes(_table(shape, tokens, seqs, by_tp), demand)
        seats = np.maximum(q // layout.pp, 1.0)

        def batch(context: float) -> Array:
            """Sequences of a lane: its seats, or what the KV cache holds, whole blocks or none."""
            return np.maximum(np.minimum(seats, np.floor(kv_tokens / layout.pp / max(context, 1.0)) + 1.0), 1.0)

        stage = assess(
            known[key],
            s.engine,
            tokens=t,
            batch=batch(demand.held_low_tokens),
            usual_batch=batch(demand.context_tokens),
            lanes=r * layout.dp * layout.pp,
            in_step=layout.dp * layout.pp,
        )
        columns |= {name: getattr(stage, name) for name in names}
    else:
        columns |= {name: np.full(t.size, np.nan) for name in names}
    n_gpus = (r * layout.n_gpus_per_replica).astype(np.int64) + shape.pool_gpus
    whole = {"tokens": t, "seqs": q, "replicas": r}
    return {
        "shape": np.full(t.size, index),
        **{name: values.astype(np.int64) for name, values in whole.items()},
        "n_gpus": n_gpus,
        "offer": prices[1][n_gpus],
        "usd_per_month": prices[0][n_gpus],
        "fits": fits,
        "kv_tokens": kv_tokens,
        **columns,
    }


def _table(shape: Shape, tokens: Array, seqs: Array, by_tp: dict[int, StepTable]) -> StepTable:
    """Iteration times for the largest limits, without the sends of a pipeline.

    Attention and head hang on tp alone: they are taken from the first table of it, unless drafts or weights in host
    memory come in.
    """
    s, scenario = shape.serving, shape.scenario
    engine = replace(s.engine, max_num_batched_tokens=int(tokens[-1]), max_num_seqs=int(seqs[-1]))
    layout = replace(shape.layout, pp=1)
    described = (scenario.model, scenario.hardware, layout, s.precision, engine, scenario.routing)
    more = engine.draft_tokens or engine.weight_offload_frac or engine.expert_offload_frac
    if layout.tp not in by_tp or more:
        by_tp[layout.tp] = compile_step_table(*described)
        return by_tp[layout.tp]
    base = by_tp[layout.tp]
    parts = ServingStep(*described).linear_parts_s(base.token_grid)
    return replace(base, linear_time_s=np.sum(list(parts.values()), axis=0), parts={})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a simulation of one layout says, at the predicted step time."""

    figures: Mapping[str, float | None]  # as a plan names them, latencies at the percentile of the targets
    over: Mapping[str, float]  # by check: what it takes over what is allowed; above one it fails
    most_running: int  # of a replica
    kv_peak_frac: float


def scenario_of(layouts: Layouts, i: int) -> Scenario:
    """The resolved scenario of layout ``i``."""
    x = layouts
    shape = x.shapes[x.shape[i]]
    s = shape.serving
    engine = replace(s.engine, max_num_batched_tokens=int(x.tokens[i]), max_num_seqs=int(x.seqs[i]))
    pool = s.prefill
    if pool is not None and shape.pool_follows:
        pool = replace(pool, max_num_seqs=engine.max_num_seqs, max_num_batched_tokens=engine.max_num_batched_tokens)
    layout = replace(shape.layout, replicas=int(x.replicas[i]))
    serving = replace(s, layout=layout, engine=engine, prefill=pool)
    money = shape.scenario.money if x.offer[i] < 0 else shape.site.offers[x.offer[i]].money
    return replace(shape.scenario, serving=serving, money=money, comparison=None, references=())


def simulated(scenario: Scenario, *, priced: bool, step_factor: float = 1.0) -> Outcome:
    """The planner's own simulation, money and checks, without intervals, at a multiple of the predicted step time."""
    serving = scenario.serving
    if serving is None:
        raise ValueError(f"{scenario.name}: does not serve")
    deployment = Deployment(scenario.model, scenario.hardware, serving, scenario.routing, scenario.seed)
    found = plan_serving(deployment, scenario.model_error, lambda _text: None, brief=step_factor)
    money = finance(scenario, None, found)
    checks = [c for c in judge(scenario, None, found, money.budget) if priced or c.check != "budget"]
    figures: dict[str, float | None] = dict.fromkeys((*(f"{name}_s" for name in TARGETS), "requests_per_s"))
    if found.result is not None and found.log is not None:
        figures |= {
            "requests_per_s": found.result.requests_per_s.value,
            "output_tokens_per_s": found.result.output_tokens_per_s.value,
            **_at_percentile(found.log, serving),
        }
        rate = found.result.requests_per_s.value
        figures["makespan_s"] = serving.traffic.arrivals.n_requests / rate if rate > 0.0 else None
    if priced:
        month, per_million = money.cost.usd_per_month, money.cost.usd_per_million_output_tokens
        figures["usd_per_month"] = None if month is None else month.value
        figures["usd_per_million_output_tokens"] = None if per_million is None else per_million.value
    over = {check.check: over_of(check) for check in checks}
    if found.log is None:
        return Outcome(figures, over, 0, 0.0)
    return Outcome(figures, over, _most_running(found.log), found.log.kv_peak_frac)


def over_of(check: Verdict) -> float:
    """What a check takes over what it allows, or the other way round: above one exactly where it fails."""
    if check.need is None or check.have is None or not check.need or not check.have:
        return 0.0 if check.ok else math.inf
    ratio = check.need / check.have
    return min(ratio, 1.0 / ratio) if check.ok else max(ratio, 1.0 / ratio, 1.0 + 1e-9)


def _at_percentile(log: EventLog, serving: Serving) -> dict[str, float | None]:
    keep = metrics.counted(log, serving.traffic.arrivals.warmup_requests)
    found: dict[str, float | None] = {}
    for name, values in (("ttft", metrics.ttft_s), ("tpot", metrics.tpot_s), ("e2e", metrics.e2e_s)):
        kept = values(log)[keep]
        known = not np.isnan(kept).all()
        found[f"{name}_s"] = float(np.nanpercentile(kept, serving.slo.percentile)) if known else None
    return found


def _most_running(log: EventLog) -> int:
    """Most requests between their start and their end at once, in any replica."""
    most = 0
    started = ~np.isnan(log.scheduled_s)
    for replica in range(log.replica_busy_s.size):
        mine = started & (log.replica == replica)
        times = np.concatenate([log.scheduled_s[mine], log.finish_s[mine]])
        change = np.concatenate([np.ones(mine.sum()), -np.ones(mine.sum())])
        order = np.lexsort((change, times))
        if order.size:
            most = max(most, int(np.cumsum(change[order]).max()))
    return most
