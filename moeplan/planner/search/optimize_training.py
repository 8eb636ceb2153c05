"""Every layout of a training run: bounded at once, timed in full where the bound leaves it a chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from moeplan.costs.model_state import MASTER_BYTES, OPTIMIZER_BYTES
from moeplan.costs.schedule import Schedule, schedule_problem
from moeplan.errors import input_error
from moeplan.files.scenario.question import Question
from moeplan.files.scenario.resolve_checks import training_problems
from moeplan.files.scenario.schema_search import OptimizeFile
from moeplan.planner.money.finance import finance
from moeplan.planner.money.money import run_bill
from moeplan.planner.plan import judge
from moeplan.planner.search.optimize_serving import over_of
from moeplan.planner.search.search_result import Candidate, Counts
from moeplan.planner.search.search_space import Priced, Site, powers_of_two
from moeplan.planner.training import plan_training
from moeplan.spec.layout import TrainingLayout
from moeplan.spec.scenario import Scenario, Training
from moeplan.steps.training_layer import TrainingBlocks

Array = npt.NDArray[np.float64]
Told = Callable[[int, int], None]

FIGURE = {"cost": "total_usd", "time": "wall_time_s", "latency": "wall_time_s", "throughput_per_dollar": "total_usd"}
_MICRO_BATCHES = (1, 2, 4, 8)
_CONTEXT_RANK_TOKENS = 4096  # context parallelism is tried while a rank keeps at least so many positions


@dataclass(frozen=True, slots=True)
class Run:
    """One choice."""

    site: Site
    layout: TrainingLayout
    micro_batch: int
    offer: int


class TrainingSearch:
    """Branch and bound over the runs; arrays of shape (n,)."""

    def __init__(self, question: Question, search: OptimizeFile, found: list[Site], most_gpus: int, told: Told) -> None:
        self.told, self.most_timed = told, search.simulations
        self.front_of, self.figure = ("total_usd", "wall_time_s"), FIGURE[search.by]
        stated = question.value("gpus")
        self.room = (f"gpus={most_gpus}",) if stated is not None and stated != most_gpus else ()
        self.runs: list[Run] = []
        least_s: list[Array] = []
        for site in found:
            runs = list(_runs(search, site, most_gpus, question.value("training.layout.schedule") or "1f1b"))
            least_s.append(_least_wall_s(site, runs))
            self.runs += runs
        if not self.runs:
            what = "an empty space: no layout suits the model, the batch, the machines and the GPUs there are"
            raise input_error("optimize", what)
        self.wall_least = np.concatenate(least_s)
        self.fits = np.array([_state_fits(run) for run in self.runs])
        self.usd_least = np.array([_usd(run, wall) for run, wall in zip(self.runs, self.wall_least, strict=True)])
        self.least = self.usd_least if self.figure == "total_usd" else self.wall_least
        budget = found[0].scenario.money.budget
        self.limit_usd = math.inf if budget is None else budget.limit_usd
        self.deadline_s = math.inf if budget is None or budget.deadline_s is None else budget.deadline_s
        self.possible = self.fits & ~(self.usd_least > self.limit_usd) & ~(self.wall_least > self.deadline_s)
        self.results: dict[int, Candidate] = {}
        self.order = np.lexsort((np.arange(len(self.runs)), self.least))

    def run(self) -> int | None:
        """Index of the answer. In order of the bound, until it passes the best run known."""
        best = self.best()
        bound = math.inf if best is None else self.value(best)
        for i in map(int, self.order):
            if self.least[i] >= bound or len(self.results) >= self.most_timed:
                break
            if self.possible[i] and i not in self.results:
                self.results[i] = self._timed(i)
                self.told(len(self.results), self.most_timed)
                if self.results[i].feasible:
                    bound = min(bound, self.value(i))
        return self.best()

    def _timed(self, i: int) -> Candidate:
        scenario, run = self.scenario(i), self.runs[i]
        training, priced = _training(scenario), run.offer >= 0
        found = plan_training(
            scenario.model,
            scenario.hardware,
            training,
            scenario.training_routing,
            scenario.model_error,
            deadline_s=None if scenario.money.budget is None else scenario.money.budget.deadline_s,
            seed=scenario.seed,
            brief=True,
        )
        figures: dict[str, float | None] = {"total_usd": None, "wall_time_s": None, "step_time_s": None}
        if found.result is None:
            over = {"memory": found.fit.need_bytes / found.fit.available_bytes}
        else:
            money = finance(scenario, found, None)
            checks = [c for c in judge(scenario, found, None, money.budget) if priced or c.check != "budget"]
            over = {check.check: over_of(check) for check in checks}
            total = money.cost.total_usd
            figures["total_usd"] = total.value if priced and total is not None else None
            figures["wall_time_s"] = found.result.wall_time_s.value
            figures["step_time_s"] = found.result.step_time_s.value
            figures["mfu_frac"] = found.result.mfu_frac.value
        failed = tuple(name for name, ratio in over.items() if ratio > 1.0)
        worst = min(max(over.values(), default=0.0), 1e9)
        return Candidate(self.overrides(i), self.choice(i), run.layout.n_gpus, figures, True, not failed, failed, worst)

    def scenario(self, i: int) -> Scenario:
        """The resolved scenario of run ``i``."""
        run = self.runs[i]
        base = run.site.scenario
        training = _training(base)
        work = replace(training.work, micro_batch_sequences=run.micro_batch)
        money = base.money if run.offer < 0 else run.site.offers[run.offer].money
        return replace(
            base, training=replace(training, layout=run.layout, work=work), money=money, comparison=None, references=()
        )

    def overrides(self, i: int) -> tuple[str, ...]:
        """What to set in the scenario to get this run's plan."""
        run = self.runs[i]
        offer = [] if run.offer < 0 else [run.site.offers[run.offer].override]
        degrees = ("tp", "pp", "vpp", "cp", "dp", "ep", "etp", "schedule")
        layout = [f"training.layout.{name}={getattr(run.layout, name)}" for name in degrees]
        rest = [
            f"training.layout.zero={run.layout.zero_stage}",
            f"training.recompute={run.layout.recompute}",
            f"training.micro_batch={run.micro_batch}",
        ]
        return tuple(text for text in (*run.site.overrides, *offer, *layout, *rest, *self.room) if text)

    def choice(self, i: int) -> dict[str, str | int]:
        """For people and for a report's table."""
        run = self.runs[i]
        offer = "" if run.offer < 0 else run.site.offers[run.offer].money.offer.name
        site = {"model": run.site.model, "hardware": run.site.hardware, "formats": run.site.formats, "offer": offer}
        layout = {name: getattr(run.layout, name) for name in ("tp", "pp", "vpp", "cp", "dp", "ep")}
        return {**site, **layout, "zero": run.layout.zero_stage, "recompute": run.layout.recompute,
                "micro_batch": run.micro_batch}  # fmt: skip

    def value(self, i: int) -> float:
        found = self.results[i].figures.get(self.figure)
        return math.inf if found is None else found

    def best(self) -> int | None:
        """The feasible run with the least value; of equals the fastest, then the first."""
        good = [i for i, candidate in self.results.items() if candidate.feasible]
        return min(good, key=lambda i: (self.value(i), self.results[i].figures["wall_time_s"], i), default=None)

    def refuse(self, i: int, failed: tuple[str, ...]) -> None:
        """The full plan of ``i`` misses checks that the figures here do not show."""
        self.results[i] = replace(self.results[i], feasible=False, failed=failed, worst_over=1.0)

    def ruled_out_by(self, better_than: float) -> dict[str, int]:
        """How many runs with a better bound a single check rules out without timing."""
        worth = self.fits & (self.least < better_than)
        late, dear = self.wall_least > self.deadline_s, self.usd_least > self.limit_usd
        found = {"deadline": int((worth & late & ~dear).sum()), "budget": int((worth & dear & ~late).sum())}
        found["memory"] = int((~self.fits & (self.least < better_than)).sum())
        return {name: n for name, n in found.items() if n}

    def most_hopeful(self) -> list[Candidate]:
        """The run that its bounds leave least far off; none where nothing fits."""
        ratios = {"deadline": self.wall_least / self.deadline_s, "budget": self.usd_least / self.limit_usd}
        over = np.maximum(ratios["deadline"], ratios["budget"])
        fits = np.flatnonzero(self.fits)
        if not fits.size:
            return []
        i = int(fits[np.argmin(over[fits])])
        failed = tuple(name for name, ratio in ratios.items() if ratio[i] > 1.0)
        figures: dict[str, float | None] = {"wall_time_s": float(self.wall_least[i])}
        return [Candidate(self.overrides(i), self.choice(i), self.runs[i].layout.n_gpus, figures, False, False, failed,
                          float(over[i]))]  # fmt: skip

    def open_over(self) -> float:
        """Bounds of a training run say nothing of how far an open one is off."""
        return 1.0

    def counts(self) -> Counts:
        """Every run in one drawer. A run timed in full that does not fit is counted as timed."""
        n, fit, timed = len(self.runs), int(self.fits.sum()), len(self.results)
        best = self.best()
        bound = math.inf if best is None else self.value(best)
        tried = np.zeros(n, dtype=np.bool_)
        tried[list(self.results)] = True
        open_ = int((self.possible & ~tried & (self.least < bound)).sum())
        ruled = int((self.fits & ~self.possible).sum())
        return Counts(n, n - fit, ruled, fit - ruled - timed - open_, 0, timed, open_)


def _training(scenario: Scenario) -> Training:
    if scenario.training is None:
        raise ValueError(f"{scenario.name}: does not train")
    return scenario.training


def _runs(search: OptimizeFile, site: Site, most_gpus: int, schedule: Schedule) -> Iterator[Run]:
    """Runs that suit model, batch and machine, in a fixed order, on any allowed number of GPUs."""
    model, hardware = site.scenario.model, site.scenario.hardware
    training = _training(site.scenario)
    work = training.work
    longest_cp = max(1, work.sequence_tokens // _CONTEXT_RANK_TOKENS)
    offers = range(len(site.offers)) if site.offers else (-1,)
    for tp, pp, cp in product(
        search.tp or [n for n in powers_of_two(most_gpus) if n <= hardware.n_gpus_scale_up],
        search.pp or powers_of_two(min(most_gpus, model.n_layers)),
        search.cp or [n for n in powers_of_two(most_gpus) if n <= longest_cp],
    ):
        for dp in search.dp or powers_of_two(most_gpus // (tp * pp * cp)):
            if tp * pp * cp * dp > most_gpus:
                continue
            spreads = search.ep or (powers_of_two(tp * cp * dp) if model.is_moe else [1])
            for ep, vpp, zero, recompute, micro in product(
                spreads,
                search.vpp or [1],
                search.zero or [training.layout.zero_stage],
                search.recompute or ["none", "selective", "full"],
                search.micro_batch or _MICRO_BATCHES,
            ):
                if work.global_batch_sequences % (dp * micro):
                    continue
                # without a pipeline there is nothing to schedule
                own = schedule if pp > 1 else "1f1b"
                if schedule_problem(own, pp, vpp, work.global_batch_sequences // (dp * micro)):
                    continue
                layout = replace(
                    training.layout, tp=tp, pp=pp, cp=cp, dp=dp, ep=ep, vpp=vpp, zero_stage=zero, recompute=recompute,
                    schedule=own,
                )  # type: ignore[arg-type]  # fmt: skip
                trial = replace(training, layout=layout, work=replace(work, micro_batch_sequences=micro))
                if training_problems(trial, model, hardware):
                    continue
                yield from (Run(site, layout, micro, offer) for offer in offers)


def _least_wall_s(site: Site, runs: list[Run]) -> Array:
    """Bound on the wall time: the mean stage's own work of all micro-batches, nothing waited for, nothing lost.

    Blocks are timed once for each (tp, cp, ep, recompute, micro-batch); pipelines, data parallelism and GPUs vary for
    nothing.
    """
    training, scenario = _training(site.scenario), site.scenario
    known: dict[tuple[object, ...], float] = {}
    found = np.empty(len(runs))
    n_steps = math.ceil(training.work.n_tokens / (training.work.global_batch_sequences * training.work.sequence_tokens))
    for i, run in enumerate(runs):
        layout = run.layout
        key = layout.tp, layout.cp, layout.ep, layout.etp, layout.recompute, run.micro_batch
        if key not in known:
            work = replace(training.work, micro_batch_sequences=run.micro_batch)
            blocks = TrainingBlocks(
                scenario.hardware, scenario.model.hidden_size, layout, work, scenario.training_routing
            )
            once = {b: blocks.block(b).total_s for layer, _ in scenario.model.unique_layers() for b in layer.blocks}
            known[key] = sum(n * once[b] for layer, n in scenario.model.unique_layers() for b in layer.blocks)
        n_micro = training.work.global_batch_sequences // (layout.dp * run.micro_batch)
        found[i] = n_steps * n_micro * known[key] / layout.pp
    return found


def _usd(run: Run, wall_s: float) -> float:
    """Bill of a run of ``wall_s``, energy and storage apart [USD]; infinite where nobody offers the machine."""
    if run.offer < 0:
        return math.inf
    priced: Priced = run.site.offers[run.offer]
    return run_bill(priced.money, run.layout.n_gpus, wall_s, 0.0, 0.0).total


def _state_fits(run: Run) -> bool:
    """Whether the mean GPU holds its weights, gradients and optimizer: the fullest holds no less."""
    scenario, layout = run.site.scenario, run.layout
    work = _training(scenario).work
    model, capacity = scenario.model, scenario.hardware.device.memory_bytes
    if work.adapter is not None:
        return True
    experts = float(sum(b.n_params_per_expert * b.n_experts for b in model.moe_blocks))
    rest = model.n_params_total - experts
    copies = layout.tp * layout.pp, layout.ep * layout.etp * layout.pp
    data = layout.dp * layout.cp, layout.edp

    def held(bytes_per_param: float, *, sharded: bool) -> float:
        return sum(
            n / c / (d if sharded else 1) * bytes_per_param
            for n, c, d in zip((rest, experts), copies, data, strict=True)
        )

    state = OPTIMIZER_BYTES[work.optimizer] + (MASTER_BYTES if work.master_weights else 0.0)
    need = held(2.0, sharded=layout.zero_stage == 3)
    need += held(work.gradient_bytes_per_param, sharded=layout.zero_stage >= 2)
    need += held(state, sharded=layout.zero_stage >= 1)
    return need <= capacity
