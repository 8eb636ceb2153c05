"""Stage two for serving: simulate what could be the answer, and nothing that a bound shows cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moeplan.planner.search.optimize_serving import TARGETS, Layouts, Outcome, scenario_of, simulated
from moeplan.planner.search.search_result import Candidate, Counts
from moeplan.planner.search.serving_bounds import demand_of

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Told = Callable[[int, int], None]

FIGURE = {
    "cost": "usd_per_month",
    "latency": "e2e_s",
    "throughput_per_dollar": "usd_per_million_output_tokens",
    "time": "makespan_s",
}
_FRONT = 8  # candidates of the estimated front that are simulated whatever the objective
_KEEPS_UP_FRAC = 0.97  # of the asked rate: estimates only
_SERVICE = {"load", "slo_ttft", "slo_tpot", "slo_e2e"}  # checks that fewer replicas meet no better; a budget they do
_KV_FREE_FRAC = 0.98  # a cache fuller than this may have turned a request away for a moment


class ServingSearch:
    """The candidates with what is known of each. All arrays have shape (n,)."""

    def __init__(self, layouts: Layouts, by: str, most_simulations: int, told: Told) -> None:
        self.layouts, self.by, self.most_simulations, self.told = layouts, by, most_simulations, told
        # traffic, targets and budget are the same for all shapes
        self.scenario = layouts.shapes[0].scenario
        self.serving = layouts.shapes[0].serving
        self.demand = demand_of(self.serving, self.scenario.seed)
        self.front_of, self.figure = ("usd_per_month", "e2e_s"), FIGURE[by]
        self.results: dict[int, Candidate] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.reused = 0
        x, self.slo = layouts, self.serving.slo
        self.limit_usd = math.inf if self.scenario.money.budget is None else self.scenario.money.budget.limit_usd
        self.rate = self._rate()
        self.possible: Mask = x.fits & ~self._ruled_out()
        self.least: Array = self._objective(bound=True)
        self.closed: Mask = np.zeros(len(x), dtype=np.bool_)  # shown to fail by fewer or equal replicas' failure
        with np.errstate(invalid="ignore", divide="ignore"):
            self.ratios = self._estimated_ratios()
        self.over: Array = np.max(list(self.ratios.values()), axis=0)
        group = np.stack([x.shape, x.tokens, x.seqs])
        _, self.group = np.unique(group, axis=1, return_inverse=True)

    def _rate(self) -> float | None:
        """Requests/s that must be kept up with."""
        arrivals = self.serving.traffic.arrivals
        return arrivals.rate_per_s if arrivals.kind in ("open", "trace") else None

    def _targets(self) -> dict[str, float]:
        found = {name: getattr(self.slo, f"{name}_s") for name in TARGETS}
        return {name: target for name, target in found.items() if target is not None}

    def _ruled_out(self) -> Mask:
        """No simulation of these could pass every check."""
        x = self.layouts
        out = x.usd_per_month > self.limit_usd
        if self.rate is not None:
            out = out | (x.capacity_most < self.rate)
        for name, target in self._targets().items():
            out = out | (getattr(x, f"{name}_least") > target)
        return np.asarray(out, dtype=np.bool_)

    def _estimated_ratios(self) -> dict[str, Array]:
        """By check: stage one's estimate over the limit; above one it expects a failure."""
        x = self.layouts
        ratios = {"budget": np.nan_to_num(x.usd_per_month, nan=0.0) / self.limit_usd}
        if self.rate is not None:
            ratios["load"] = _KEEPS_UP_FRAC * self.rate / x.requests_per_s
        ratios |= {f"slo_{name}": getattr(x, name) / target for name, target in self._targets().items()}
        return {name: np.where(np.isnan(ratio), np.inf, ratio) for name, ratio in ratios.items()}

    def _objective(self, *, bound: bool) -> Array:
        """What is minimised: its lower bound, or its estimate."""
        x, arrivals = self.layouts, self.serving.traffic.arrivals
        usd = np.where(np.isnan(x.usd_per_month), np.inf, x.usd_per_month)
        if self.by == "cost":
            return usd
        if self.by == "latency":
            return x.e2e_least if bound else x.e2e
        rate = np.minimum(x.capacity_most, self._most_served()) if bound else x.requests_per_s
        rate = np.where(np.isnan(rate), 0.0, np.maximum(rate, 0.0))
        with np.errstate(divide="ignore"):
            if self.by == "time":
                return np.where(rate > 0.0, arrivals.n_requests / rate, np.inf)
            hours = self.scenario.money.hours_per_month
            return np.where(rate > 0.0, usd / hours / 3600.0 * 1e6 / (rate * self._tokens_per_request()), np.inf)

    def _tokens_per_request(self) -> float:
        demand = self.demand
        return float(demand.output_tokens_total / demand.n_requests)

    def _most_served(self) -> float:
        """Requests/s that any deployment can show: all of them, in the time over which they are counted."""
        demand = self.demand
        return math.inf if demand.measured_span_s is None else demand.n_requests / demand.measured_span_s

    # ---- simulation

    def simulate(self, i: int) -> Candidate:
        """Candidate ``i`` by events, or by those of a twin whose limits were never reached."""
        if i not in self.results:
            outcome = self._twin(i)
            if outcome is None:
                outcome = simulated(scenario_of(self.layouts, i), priced=bool(self.layouts.offer[i] >= 0))
                self.outcomes[i] = outcome
            else:
                self.reused += 1
            self.results[i] = self.judged(i, outcome)
            self.told(len(self.outcomes), self.most_simulations)
            if _SERVICE & set(self.results[i].failed):
                self._close_smaller(i)
        return self.results[i]

    def _twin(self, i: int) -> Outcome | None:
        """The outcome of a simulation that differs only in seats that neither of the two runs out of."""
        x = self.layouts
        reserves = self.serving.engine.output_reserve_frac > 0.0  # such an engine looks at the size of the whole cache
        pp = x.shapes[x.shape[i]].layout.pp
        for j, outcome in self.outcomes.items():
            same = x.shape[j] == x.shape[i] and x.tokens[j] == x.tokens[i] and x.replicas[j] == x.replicas[i]
            if not same or (reserves and x.kv_tokens[i] != x.kv_tokens[j]):
                continue
            seats = min(x.seqs[i], x.seqs[j]) // pp
            cache = min(x.kv_tokens[i], x.kv_tokens[j])
            if outcome.most_running < seats and outcome.kv_peak_frac * x.kv_tokens[j] < _KV_FREE_FRAC * cache:
                return outcome
        return None

    def _close_smaller(self, i: int) -> None:
        """Fewer replicas of the same kind serve the same traffic no better."""
        x = self.layouts
        self.closed |= (self.group == self.group[i]) & (x.replicas <= x.replicas[i])

    def judged(self, i: int, outcome: Outcome) -> Candidate:
        """The candidate that had this outcome."""
        failed = tuple(name for name, ratio in outcome.over.items() if ratio > 1.0)
        worst = min(max(outcome.over.values(), default=0.0), 1e9)
        n_gpus = int(self.layouts.n_gpus[i])
        return Candidate(self.overrides(i), self.choice(i), n_gpus, outcome.figures, True, not failed, failed, worst)

    def estimated(self, i: int) -> Candidate:
        """Candidate ``i`` by stage one."""
        x = self.layouts
        figures: dict[str, float | None] = {"usd_per_month": _known(x.usd_per_month[i])}
        figures |= {f"{name}_s": _known(getattr(x, name)[i]) for name in TARGETS}
        figures["requests_per_s"] = _known(x.requests_per_s[i])
        over = min(float(self.over[i]), 1e9)
        failed = tuple(name for name, ratio in self.ratios.items() if ratio[i] > 1.0)
        return Candidate(self.overrides(i), self.choice(i), int(x.n_gpus[i]), figures, False, False, failed, over)

    # ---- what a candidate is

    def choice(self, i: int) -> dict[str, str | int]:
        """For people and for a report's table."""
        x = self.layouts
        shape = x.shapes[x.shape[i]]
        offer = "" if x.offer[i] < 0 else shape.site.offers[x.offer[i]].money.offer.name
        site = {"model": shape.site.model, "hardware": shape.site.hardware, "formats": shape.site.formats}
        layout = {name: getattr(shape.layout, name) for name in ("tp", "pp", "dp", "ep")}
        limits = {"max_num_seqs": int(x.seqs[i]), "max_num_batched_tokens": int(x.tokens[i])}
        return {**site, "offer": offer, **layout, "replicas": int(x.replicas[i]), **limits}

    def overrides(self, i: int) -> tuple[str, ...]:
        """What to set in the scenario to get this candidate's plan."""
        x = self.layouts
        shape = x.shapes[x.shape[i]]
        offer = [] if x.offer[i] < 0 else [shape.site.offers[x.offer[i]].override]
        layout = [f"serving.layout.{name}={getattr(shape.layout, name)}" for name in ("tp", "pp", "dp", "ep")]
        limits = [
            f"serving.layout.replicas={x.replicas[i]}",
            f"serving.engine.max_num_seqs={x.seqs[i]}",
            f"serving.engine.max_num_batched_tokens={x.tokens[i]}",
        ]
        return tuple(text for text in (*shape.site.overrides, *offer, *layout, *limits, *shape.room) if text)

    # ---- the search

    def run(self) -> int | None:
        """Index of the answer; None when nothing simulated is feasible."""
        estimate = self._objective(bound=False)
        hopeful = np.flatnonzero(self.possible & (self.over <= 1.0))
        order = hopeful[np.lexsort((hopeful, self.layouts.e2e[hopeful], estimate[hopeful]))]
        for i in order:
            if len(self.outcomes) >= self.most_simulations // 2 or self.best() is not None:
                break
            if not self.closed[i]:
                self.simulate(int(i))
        for i in self._estimated_front(estimate):
            if len(self.outcomes) < self.most_simulations:
                self.simulate(int(i))
        while len(self.outcomes) < self.most_simulations:
            open_ = self.open()
            if not open_.size:
                break
            promising = open_[np.lexsort((open_, self.layouts.e2e[open_], self.over[open_]))][0]
            self.simulate(self._largest(int(promising), open_))
        return self.best()

    def open(self) -> npt.NDArray[np.int64]:
        """Candidates that might be better than the best one known."""
        best = self.best()
        bound = np.inf if best is None else self.value(best)
        tried = np.zeros(len(self.layouts), dtype=np.bool_)
        tried[list(self.results)] = True
        return np.flatnonzero(self.possible & ~self.closed & ~tried & (self.least < bound * (1.0 - 1e-9)))

    def open_over(self) -> float:
        """Least ratio by which stage one expects an open candidate to miss a check; below one it expects none."""
        open_ = self.open()
        return float(self.over[open_].min()) if open_.size else math.inf

    def _largest(self, i: int, open_: npt.NDArray[np.int64]) -> int:
        """The open candidate of ``i``'s kind with most replicas: if it fails, so do all."""
        kind = open_[self.group[open_] == self.group[i]]
        return int(kind[np.argmax(self.layouts.replicas[kind])])

    def _estimated_front(self, estimate: Array) -> npt.NDArray[np.int64]:
        """Exact Pareto front of cost and end-to-end time by stage one, thinned to a few."""
        x = self.layouts
        good = np.flatnonzero(self.possible & (self.over <= 1.0))
        cost = np.where(np.isnan(x.usd_per_month), x.n_gpus, x.usd_per_month)[good]
        front = good[pareto(cost, x.e2e[good])]
        step = max(1, math.ceil(front.size / _FRONT))
        return front[::step]

    def value(self, i: int) -> float:
        found = self.results[i].figures.get(self.figure)
        return math.inf if found is None else found

    def best(self) -> int | None:
        """The simulated feasible candidate with the least value; of equals the fastest, then the first."""
        good = [i for i, candidate in self.results.items() if candidate.feasible]
        return min(good, key=lambda i: (self.value(i), self.results[i].figures.get("e2e_s") or 0.0, i), default=None)

    def refuse(self, i: int, failed: tuple[str, ...]) -> None:
        """The full plan of ``i`` misses checks that the figures here do not show."""
        self.results[i] = replace(self.results[i], feasible=False, failed=failed, worst_over=1.0)

    def ruled_out_by(self, better_than: float) -> dict[str, int]:
        """How many layouts with a better bound a single check rules out without a simulation."""
        x = self.layouts
        worth = x.fits & (self.least < better_than)
        misses: dict[str, Mask] = {"budget": x.usd_per_month > self.limit_usd}
        if self.rate is not None:
            misses["load"] = x.capacity_most < self.rate
        misses |= {f"slo_{name}": getattr(x, f"{name}_least") > target for name, target in self._targets().items()}
        n_missed = np.sum(list(misses.values()), axis=0)
        alone = {name: int((worth & missed & (n_missed == 1)).sum()) for name, missed in misses.items()}
        return {name: n for name, n in alone.items() if n}

    def most_hopeful(self) -> list[Candidate]:
        """The layout that stage one finds least far off, where nothing was simulated; none where nothing fits."""
        fits = np.flatnonzero(self.layouts.fits)
        return [self.estimated(int(fits[np.argmin(self.over[fits])]))] if fits.size else []

    def counts(self) -> Counts:
        """Every layout in one drawer."""
        n, x = len(self.layouts), self.layouts
        n_open = int(self.open().size)
        ruled = int((x.fits & ~self.possible).sum())
        simulated, twins = len(self.outcomes), self.reused
        fit = int(x.fits.sum())
        return Counts(n, n - fit, ruled, fit - ruled - simulated - twins - n_open, twins, simulated, n_open)


def pareto_candidates(candidates: Sequence[Candidate], x: str, y: str) -> list[Candidate]:
    """The candidates that no other beats in both figures, by the first; those without a figure are left out."""
    known = [c for c in candidates if c.figures.get(x) is not None and c.figures.get(y) is not None]
    a, b = (np.array([float(c.figures[name] or 0.0) for c in known]) for name in (x, y))
    return [known[i] for i in pareto(a, b)]


def pareto(a: Array, b: Array) -> npt.NDArray[np.int64]:
    """Indices of the points that no other beats in both (less is better), by ``a``; of equal points the first."""
    order = np.lexsort((np.arange(a.size), b, a))
    best, kept = np.inf, []
    for i in order:
        if b[i] < best:
            kept.append(i)
            best = b[i]
    return np.array(kept, dtype=np.int64)


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
