"""What the answer becomes when traffic, GPUs, price and time move: the simulator's own answers on a grid.

A reader interpolates between them (linearly, or linearly in the logarithms of coordinates and value), and how wrong
that is was measured: the middle of every cell is simulated too, and its largest error is kept with the cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from moeplan.costs.money import break_even
from moeplan.errors import InputError
from moeplan.planner.money.finance import finance
from moeplan.planner.serving import ServingOutcome, plan_serving
from moeplan.planner.training import TrainingOutcome, plan_training
from moeplan.simulate.deployment import Deployment
from moeplan.spec.plan import Plan
from moeplan.spec.prices import Money
from moeplan.spec.scenario import Scenario, Serving, Training
from moeplan.spec.workload import Arrivals

Told = Callable[[int, int], None]

_N_WORK = 9  # nodes along the traffic or the tokens, geometric
_WORK_FROM = 0.2  # of what the scenario states ...
_WORK_TO = 1.1  # ... to so much of what the deployment could serve, or twice the stated
_SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the scenario's replicas, or of its data parallelism
_PRICES = (0.25, 1.0, 4.0)
_MONTHS = (1.0, 12.0, 60.0)


@dataclass(frozen=True, slots=True)
class Axis:
    """What a reader moves. ``steps``: only the nodes are possible values."""

    name: str
    label: str
    unit: str
    nodes: tuple[float, ...]
    start: float  # the scenario's own value
    steps: bool = False


@dataclass(frozen=True, slots=True)
class Response:
    """What moves with the axes. ``values`` are in the order of the axes, the last one fastest.

    ``error_frac`` holds the largest relative error of interpolation in the middles of the cells of ``work``, at every
    node of ``size`` (fastest).
    """

    name: str
    label: str
    unit: str
    axes: tuple[str, ...]
    log: bool
    values: tuple[float | None, ...]
    error_frac: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Surface:
    axes: tuple[Axis, ...]
    responses: tuple[Response, ...]
    n_simulated: int
    n_held_out: int


@dataclass(frozen=True, slots=True)
class _Asked:
    """A response: its words, what it depends on, and whether logarithms straighten it."""

    label: str
    unit: str
    axes: tuple[str, ...]
    log: bool


_SERVING: Mapping[str, _Asked] = {
    "usd_per_month": _Asked("Cost a month", "USD", ("work", "size", "price"), False),
    "total_usd": _Asked("Cost over the months", "USD", ("work", "size", "price", "months"), False),
    "usd_per_million_output_tokens": _Asked("Per million output tokens", "USD", ("work", "size", "price"), True),
    "load_frac": _Asked("Utilisation: load over the most it could serve", "", ("work", "size"), True),
    "requests_per_s": _Asked("Requests served", "req/s", ("work", "size"), True),
    "ttft_s": _Asked("Time to first token, p90", "s", ("work", "size"), True),
    "tpot_s": _Asked("Time per output token, p90", "s", ("work", "size"), True),
    "api_usd_per_month": _Asked("The same traffic at the cheapest hosted offer, a month", "USD", ("work",), True),
    "break_even_per_s": _Asked("Own hardware is cheaper from", "req/s", ("work", "size", "price"), False),
}
_TRAINING: Mapping[str, _Asked] = {
    "total_usd": _Asked("Cost of the run", "USD", ("work", "size", "price"), True),
    "wall_time_days": _Asked("Wall time", "days", ("work", "size"), True),
    "mfu_frac": _Asked("Utilisation: model FLOP utilisation", "", ("size",), True),
    "gpu_hours": _Asked("GPU hours", "h", ("work", "size"), True),
    "tokens_for_budget": _Asked("Tokens the budget pays for", "tokens", ("size", "price"), True),
}


def surface(scenario: Scenario, plan: Plan, *, progress: Told | None = None) -> Surface | None:
    """The grid around ``scenario``, whose plan is ``plan``; None where the plan does not run."""
    told = progress or (lambda _done, _total: None)
    if scenario.serving is not None and plan.serving is not None:
        return _serving_surface(scenario, scenario.serving, plan, told)
    if scenario.training is not None and plan.training is not None:
        return _training_surface(scenario, scenario.training, told)
    return None


def _serving_surface(scenario: Scenario, serving: Serving, plan: Plan, told: Told) -> Surface:
    replicas = serving.layout.replicas
    capacity = None if plan.serving is None else plan.serving.capacity_requests_per_s
    per_replica = None if capacity is None else capacity.value / replicas
    arrivals = serving.traffic.arrivals
    stated = arrivals.rate_per_s
    base, unit = (stated, "req/s") if stated is not None else (float(arrivals.n_users or 1), "users")
    if stated is None and arrivals.n_users is None:
        unit = "times the scenario's"
    most = 2.0 * base
    if stated is not None and capacity is not None:
        most = max(most, _WORK_TO * capacity.value)
    months = scenario.lifecycle_months or 12.0
    # a fleet that scales itself finds its own size
    sizes = (float(replicas),) if serving.fleet.changes else _sizes(replicas)
    pool = "Replicas" if serving.prefill is None else "Replicas that decode"
    axes = (
        Axis("work", "Traffic", unit, _geometric(_WORK_FROM * base, most, base), base),
        Axis("size", pool, f"of {serving.layout.n_gpus_per_replica} GPUs", sizes, replicas, True),
        _price_axis(scenario.money),
        Axis("months", "Months", "months", tuple(sorted({*_MONTHS, months})), months),
    )
    runs: dict[tuple[float, float], ServingOutcome] = {}

    def answer(work: float, size: float, price: float, months: float) -> dict[str, float | None]:
        layout = replace(serving.layout, replicas=int(size))
        traffic = replace(serving.traffic, arrivals=_scaled(arrivals, work / base))
        tried = replace(serving, layout=layout, traffic=traffic)
        if (work, size) not in runs:
            deployment = Deployment(scenario.model, scenario.hardware, tried, scenario.routing, scenario.seed)
            runs[work, size] = plan_serving(deployment, scenario.model_error, lambda _text: None, brief=1.0)
        money = _at_price(scenario.money, price)
        asked = work if stated is not None else None
        return _serving_answer(replace(scenario, serving=tried, money=money), runs[work, size], asked, per_replica,
                               months)  # fmt: skip

    return _filled(axes, _SERVING, answer, runs, told)


def _serving_answer(
    scenario: Scenario, outcome: ServingOutcome, asked: float | None, per_replica: float | None, months: float
) -> dict[str, float | None]:
    serving, result, money = scenario.serving, outcome.result, scenario.money
    if serving is None or result is None:
        return {}
    capacity = None if per_replica is None else per_replica * serving.layout.replicas
    if capacity is not None:
        q = replace(result.requests_per_s, value=capacity, low=capacity, high=capacity)
        outcome = replace(outcome, result=replace(result, capacity_requests_per_s=q))
    found = finance(replace(scenario, lifecycle_months=None), None, outcome)
    month = found.cost.usd_per_month
    per_million = found.cost.usd_per_million_output_tokens
    served = result.requests_per_s.value
    answer = {
        "usd_per_month": None if month is None else month.value,
        "total_usd": None if month is None else month.value * months,
        "usd_per_million_output_tokens": None if per_million is None else per_million.value,
        "load_frac": None if capacity is None else (served if asked is None else asked) / capacity,
        "requests_per_s": served,
        "ttft_s": None if result.ttft_s is None else result.ttft_s.p90.value,
        "tpot_s": None if result.tpot_s is None else result.tpot_s.p90.value,
    }
    options = found.alternatives
    hosted = [] if options is None else [o.usd_per_month.value for o in options.options if o.kind == "api"]
    if options is not None and hosted and month is not None:
        parts = found.cost.breakdown
        # people and traffic to the users stay whoever serves the model
        shared = (parts.get("people", 0.0) + parts.get("egress", 0.0)) * (1.0 + money.tax_frac)
        per_request = (min(hosted) - shared) / options.requests_per_month
        at = break_even(month.value - shared, per_request)
        answer["api_usd_per_month"] = min(hosted)
        answer["break_even_per_s"] = at / (money.hours_per_month * 3600.0)
    return answer


def _training_surface(scenario: Scenario, training: Training, told: Told) -> Surface:
    hardware = scenario.training_hardware or scenario.hardware
    layout, tokens = training.layout, training.work.n_tokens
    per_rank = layout.n_gpus // layout.dp
    money = scenario.training_money or scenario.money
    runs: dict[tuple[float, float], TrainingOutcome] = {}

    def run(work: float, size: float) -> TrainingOutcome:
        if (work, size) not in runs:
            tried = replace(training, layout=replace(layout, dp=int(size)), work=replace(training.work, n_tokens=work))
            runs[work, size] = plan_training(
                scenario.model, hardware, tried, scenario.training_routing, scenario.model_error, seed=scenario.seed,
                brief=True,
            )  # fmt: skip
        return runs[work, size]

    def runs_at(dp: float) -> bool:
        """Whether the run divides over so many ranks, and fits."""
        rows = dp * training.work.micro_batch_sequences
        if training.work.global_batch_sequences % rows or layout.tp * layout.cp * dp % (layout.ep * layout.etp):
            return False
        try:
            return run(tokens, dp).result is not None
        except (InputError, ValueError):  # a layout this machine cannot hold
            return False

    sizes = tuple(dp for dp in _sizes(layout.dp) if dp == layout.dp or runs_at(dp))
    axes = (
        Axis("work", "Tokens", "tokens", _geometric(tokens * _WORK_FROM, tokens * 5.0, tokens, 5), tokens),
        Axis("size", "Data-parallel ranks", f"of {per_rank} GPUs", sizes, layout.dp, True),
        _price_axis(money),
    )

    def answer(work: float, size: float, price: float) -> dict[str, float | None]:
        outcome = run(work, size)
        if outcome.result is None:
            return {}
        tried = replace(
            scenario, kind="training", serving=None, lifecycle_months=None, money=_at_price(money, price),
            training_money=None, training=replace(training, layout=replace(layout, dp=int(size)),
                                                  work=replace(training.work, n_tokens=work)),
        )  # fmt: skip
        found = finance(tried, outcome, None)
        result, total = outcome.result, found.cost.total_usd
        buys = {} if found.budget is None else found.budget.buys
        return {
            "total_usd": None if total is None else total.value,
            "wall_time_days": result.wall_time_s.value / 86400.0,
            "mfu_frac": result.mfu_frac.value,
            "gpu_hours": result.gpu_hours.value,
            "tokens_for_budget": buys.get("training_tokens"),
        }

    return _filled(axes, _TRAINING, answer, runs, told)


def _filled(
    axes: Sequence[Axis],
    asked: Mapping[str, _Asked],
    answer: Callable[..., dict[str, float | None]],
    runs: Mapping[tuple[float, float], object],
    told: Told,
) -> Surface:
    """Every node, then the middle of every cell of the first axis beside the interpolated value."""
    work, *others = axes
    cells = tuple(math.sqrt(a * b) for a, b in zip(work.nodes, work.nodes[1:], strict=False))
    per_work = math.prod(len(axis.nodes) for axis in others)
    # held out: the middle along the first axis, at every size, with the other axes in the middle of a cell of theirs
    middles = list(product(*(axis.nodes if axis.steps else _middles(axis.nodes) for axis in others)))
    total = per_work * len(work.nodes) + len(middles) * len(cells)
    at: dict[tuple[float, ...], dict[str, float | None]] = {}
    for point in product(*(axis.nodes for axis in axes)):
        at[point] = answer(*point)
        told(len(at), total)
    n_simulated = len(runs)
    responses = [_response(name, what, axes, at) for name, what in asked.items()]
    sizes = next(axis.nodes for axis in axes if axis.name == "size")
    errors: dict[str, list[float]] = {name: [0.0] * (len(cells) * len(sizes)) for name in asked}
    done = len(at)
    for i, middle in enumerate(cells):
        for rest in middles:
            truth = answer(middle, *rest)
            done += 1
            told(done, total)
            place = dict(zip((axis.name for axis in axes), (middle, *rest), strict=True))
            for response in responses:
                found, value = interpolated(response, axes, place), truth.get(response.name)
                if found is not None and value is not None and value != 0.0:
                    cell = i * len(sizes) + sizes.index(place["size"])
                    errors[response.name][cell] = max(errors[response.name][cell], abs(found / value - 1.0))
    known = [
        replace(response, error_frac=tuple(errors[response.name]))
        for response in responses
        if any(value is not None for value in response.values)
    ]
    return Surface(tuple(axes), tuple(known), n_simulated, len(runs) - n_simulated)


def interpolated(response: Response, axes: Sequence[Axis], place: Mapping[str, float]) -> float | None:
    """The value at ``place`` (by axis) between the nodes around it; None next to a node without an answer.

    The same rule as the page's own: multilinear, in logarithms where the response says so.
    """
    own = [next(axis for axis in axes if axis.name == name) for name in response.axes]
    corners: list[tuple[int, float]] = [(0, 1.0)]
    for axis in own:
        lower, weight = _cell(axis.nodes, place[axis.name], response.log)
        n = len(axis.nodes)
        corners = [
            (index * n + lower + side, share * w)
            for index, share in corners
            for side, w in ((0, 1.0 - weight), (1, weight))
            if w > 0.0
        ]
    total = 0.0
    for index, share in corners:
        value = response.values[index]
        if value is None or (response.log and value <= 0.0):
            return None
        total += share * (math.log(value) if response.log else value)
    return math.exp(total) if response.log else total


def _cell(nodes: Sequence[float], x: float, log: bool) -> tuple[int, float]:
    """Lower node of the cell that holds ``x``, and how far along it lies."""
    if len(nodes) == 1:
        return 0, 0.0
    i = max(k for k in range(len(nodes) - 1) if k == 0 or nodes[k] <= x)
    a, b = nodes[i], nodes[i + 1]
    weight = math.log(x / a) / math.log(b / a) if log else (x - a) / (b - a)
    return i, min(max(weight, 0.0), 1.0)


def _response(
    name: str, what: _Asked, axes: Sequence[Axis], at: Mapping[tuple[float, ...], Mapping[str, float | None]]
) -> Response:
    """Axes it does not depend on are taken at the scenario's own value."""
    own = tuple(axis.name for axis in axes if axis.name in what.axes)
    lists = [axis.nodes if axis.name in own else (_nearest(axis),) for axis in axes]
    values = tuple(at[point].get(name) for point in product(*lists))
    return Response(name, what.label, what.unit, own, what.log, values, ())


def _nearest(axis: Axis) -> float:
    return min(axis.nodes, key=lambda node: abs(node - axis.start))


def _geometric(low: float, high: float, through: float, n: int = _N_WORK) -> tuple[float, ...]:
    nodes = [low * (high / low) ** (i / (n - 1)) for i in range(n)]
    nearest = min(range(1, n - 1), key=lambda i: abs(math.log(nodes[i] / through)))
    nodes[nearest] = through  # the scenario itself is a node: there the page says what the plan says
    return tuple(nodes)


def _middles(nodes: Sequence[float]) -> tuple[float, ...]:
    return ((nodes[0] + nodes[1]) / 2.0,) if len(nodes) > 1 else tuple(nodes)


def _sizes(base: int) -> tuple[float, ...]:
    near = range(1, 5) if base <= 2 else ()
    return tuple(float(n) for n in sorted({base, *near, *(round(base * x) for x in _SIZES)}) if n >= 1)


def _price_axis(money: Money) -> Axis:
    own = money.ownership
    price = money.offer.usd_per_gpu_hour if own is None else own.purchase_usd
    label, unit = ("Price", "USD per GPU hour") if own is None else ("Purchase price", "USD per GPU")
    return Axis("price", label, unit, tuple(price * x for x in _PRICES), price)


def _at_price(money: Money, price: float) -> Money:
    if money.ownership is not None:
        return replace(money, ownership=replace(money.ownership, purchase_usd=price))
    return replace(money, offer=replace(money.offer, usd_per_gpu_hour=price))


def _scaled(arrivals: Arrivals, factor: float) -> Arrivals:
    """``factor`` times the traffic."""
    rate, users = arrivals.rate_per_s, arrivals.n_users
    return replace(
        arrivals,
        rate_per_s=None if rate is None else rate * factor,
        n_users=None if users is None else max(1, round(users * factor)),
        rate_steps=tuple(replace(step, rate_per_s=step.rate_per_s * factor) for step in arrivals.rate_steps),
    )
