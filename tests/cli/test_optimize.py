"""``moeplan optimize``: against trying everything, its bounds, its proof, and spaces without an answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scenario_files import SERVING, TRAINING, run

import moeplan
from moeplan.files.load import load
from moeplan.files.plan_json import plan_to_json
from moeplan.files.scenario.question import ask
from moeplan.files.scenario.search_section import read_search
from moeplan.planner.plan import simulate
from moeplan.planner.search.optimize import optimize
from moeplan.planner.search.optimize_search import ServingSearch, pareto
from moeplan.planner.search.optimize_serving import Outcome, assess_layouts, scenario_of, simulated
from moeplan.planner.search.optimize_training import TrainingSearch
from moeplan.planner.search.search_space import sites
from moeplan.steps.memory import serving_memory, serving_memory_by_limits

SMALL = SERVING.replace("    output_tokens: 200\n", "    output_tokens: 200\n    requests: 300\n").replace(
    "gpus: 8\n", ""
)
SPACE = [
    "optimize.gpus=4",
    "optimize.hardware=[h100-sxm, l40s]",
    "optimize.precision=[native, fp8]",
    "optimize.max_num_seqs=[16, 64]",
    "optimize.max_num_batched_tokens=[2048, 8192]",
    "optimize.pp=[1, 2]",
    "optimize.simulations=2000",
]


@pytest.fixture
def serving(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def training(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(TRAINING)
    return path


def everything(path: Path, overrides: list[str]) -> ServingSearch:
    """Every layout that fits, simulated, whatever bounds say."""
    question = ask(path, overrides)
    wanted = read_search(question)
    found, _ = sites(question, wanted, training=False)
    search = ServingSearch(assess_layouts(question, wanted, found, 4), wanted.by, 10**6, lambda _done, _most: None)
    for i in np.flatnonzero(search.layouts.fits):
        outcome = simulated(scenario_of(search.layouts, int(i)), priced=True)
        search.results[int(i)] = search.judged(int(i), outcome)
    return search


def test_as_good_as_trying_everything(serving: Path) -> None:
    few = ["optimize.pp=[1]", "optimize.precision=[native]", "optimize.max_num_batched_tokens=[8192]"]
    _as_good_as_everything(serving, [*SPACE, *few], "12 req/s", "20 ms", "cost")


def test_drafts_are_within_the_bounds(serving: Path) -> None:
    few = [
        "optimize.pp=[1]",
        "optimize.precision=[native]",
        "optimize.max_num_batched_tokens=[8192]",
        "optimize.tp=[1]",
    ]
    drafts = ["serving.engine.draft_tokens=3", "serving.engine.draft_acceptance=0.7", "serving.engine.drafts=ngram"]
    _as_good_as_everything(serving, [*SPACE, *few, *drafts], "12 req/s", "12 ms", "cost")


def test_shared_prefixes_are_within_the_bounds(serving: Path) -> None:
    """Requests that share the blocks of a long prompt are more at once than the KV cache holds whole ones."""
    few = ["optimize.hardware=[h100-sxm]", "optimize.precision=[native]", "optimize.max_num_batched_tokens=[8192]",
           "optimize.max_num_seqs=[128]", "optimize.pp=[1]", "optimize.tp=[1]", "optimize.dp=[1]"]  # fmt: skip
    shared = ["serving.engine.memory_utilization=0.76", "serving.traffic.conversation.shared_prefix=6000",
              "serving.traffic.conversation.turns=1", "serving.traffic.requests=1000",
              "serving.slo.ttft=30 s"]  # fmt: skip
    _as_good_as_everything(serving, [*SPACE, *few, *shared], "4 req/s", "100 ms", "throughput_per_dollar")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "tpot", "by"),
    [("2 req/s", "40 ms", "cost"), ("30 req/s", "50 ms", "cost"), ("12 req/s", "12 ms", "cost"),
     ("12 req/s", "30 ms", "throughput_per_dollar"), ("6 req/s", "30 ms", "latency")],
)  # fmt: skip
def test_as_good_as_trying_everything_in_a_larger_space(serving: Path, rate: str, tpot: str, by: str) -> None:
    _as_good_as_everything(serving, SPACE, rate, tpot, by)


def _as_good_as_everything(serving: Path, space: list[str], rate: str, tpot: str, by: str) -> None:
    asked = [*space, f"serving.traffic.rate={rate}", f"serving.slo.tpot={tpot}", f"optimize.by={by}"]
    asked.append("budget=50000 USD/month")
    tried = everything(serving, asked)
    best, found = tried.best(), optimize(serving, asked)
    assert (best is None) == (found.best is None)
    if best is None or found.best is None:
        return
    assert found.proven
    assert found.best.figures[tried.figure] == pytest.approx(tried.value(best), rel=1e-12)
    if by == "cost":
        assert found.counts.simulated < found.counts.layouts / 2, "bounds rule much of it out"
    x = tried.layouts
    for i, candidate in tried.results.items():  # what no simulation may beat
        figures = candidate.figures
        assert figures["requests_per_s"] <= 1.1 * max(x.capacity_most[i], 0.0)
        for name in ("ttft", "e2e"):
            assert figures[f"{name}_s"] is None or figures[f"{name}_s"] >= getattr(x, f"{name}_least")[i] * (1 - 1e-9)
        if candidate.feasible:
            assert figures["tpot_s"] >= x.tpot_least[i] * (1 - 1e-9)
            assert tried.possible[i], "nothing feasible is ruled out"


@pytest.mark.parametrize(("missed", "closes"), [("budget", False), ("slo_tpot", True)])
def test_a_budget_missed_says_nothing_of_fewer_replicas(
    serving: Path, monkeypatch: pytest.MonkeyPatch, missed: str, closes: bool
) -> None:
    """Energy and traffic come on top of the bound on the bill: a simulation may miss the budget that fewer keep."""
    question = ask(serving, SPACE)
    wanted = read_search(question)
    found, _ = sites(question, wanted, training=False)
    layouts = assess_layouts(question, wanted, found, 4)
    search = ServingSearch(layouts, wanted.by, 100, lambda _done, _most: None)
    outcome = Outcome({"usd_per_month": 1.0}, {missed: 1.1}, 1, 0.1)
    monkeypatch.setattr("moeplan.planner.search.optimize_search.simulated", lambda _scenario, priced: outcome)
    largest = int(np.argmax(np.where(search.possible, layouts.replicas, 0)))
    search.simulate(largest)
    fewer = (search.group == search.group[largest]) & (layouts.replicas < layouts.replicas[largest])
    assert fewer.any()
    assert search.closed[fewer].all() == closes
    assert search.closed[fewer].any() == closes


def test_the_answer_asked_again_gives_the_same_bytes_and_the_same_search(serving: Path) -> None:
    found = optimize(serving, SPACE)
    assert found.best is not None
    again = simulate(load(serving, found.best.overrides))
    assert plan_to_json(again) == plan_to_json(found.plan)
    assert again.serving.ttft_s.p90.value == found.best.figures["ttft_s"]
    assert again.cost.usd_per_month.value == found.best.figures["usd_per_month"]
    options = ["--gpus", "4", "--hardware", "h100-sxm,l40s", "--precision", "native,fp8"]
    rest = [part for text in SPACE[3:] for part in ("--set", text)]
    shown = run("optimize", serving, *options, *rest, "--json")
    assert shown.exit_code == 0, shown.output
    tree = json.loads(shown.stdout)
    assert tree["best"]["overrides"] == list(found.best.overrides)
    assert tree["counts"]["layouts"] == found.counts.layouts
    assert moeplan.optimize(serving, SPACE) == found
    c = found.counts
    assert c.layouts == c.do_not_fit + c.ruled_out + c.cannot_be_better + c.as_another + c.simulated + c.open
    costs = [candidate.figures["usd_per_month"] for candidate in found.front]
    times = [candidate.figures["e2e_s"] for candidate in found.front]
    assert costs == sorted(costs)
    assert times == sorted(times, reverse=True)
    assert "Nothing better is in the space" in run("optimize", serving, *options, *rest).stdout


def test_training_as_good_as_timing_every_run(training: Path) -> None:
    asked = [
        "optimize.gpus=8",
        "optimize.micro_batch=[1, 2]",
        "optimize.recompute=[none, full]",
        "optimize.tp=[1, 2]",
        "optimize.pp=[1, 2]",
        "optimize.simulations=2000",
    ]
    question = ask(training, asked)
    wanted = read_search(question)
    found, _ = sites(question, wanted, training=True)
    tried = TrainingSearch(question, wanted, found, 8, lambda _done, _most: None)
    for i in range(len(tried.runs)):
        tried.results[i] = tried._timed(i)
        figures = tried.results[i].figures
        if figures["wall_time_s"] is not None:
            assert tried.fits[i], "what runs is not ruled out by memory"
            assert figures["wall_time_s"] >= tried.wall_least[i] * (1 - 1e-9)
            assert figures["total_usd"] >= tried.usd_least[i] * (1 - 1e-9) - 0.01
    best, answer = tried.best(), optimize(training, asked)
    assert answer.proven
    assert answer.counts.simulated < len(tried.runs) / 2
    assert answer.best.figures["total_usd"] == tried.value(best)
    again = simulate(load(training, answer.best.overrides))
    assert plan_to_json(again) == plan_to_json(answer.plan)
    assert again.cost.total_usd.value == answer.best.figures["total_usd"]


def test_targets_nobody_meets_say_how_far_off(serving: Path) -> None:
    result = run("optimize", serving, "--gpus", "2", "--set", "serving.slo.tpot=1 ms")
    assert (result.exit_code, "none of" in result.stdout, "slo_tpot" in result.stdout) == (3, True, True)
    tree = json.loads(run("optimize", serving, "--gpus", "2", "--set", "serving.slo.tpot=1 ms", "--json").stdout)
    assert tree["best"] is None
    assert tree["closest"]["worst_over"] > 1.5
    tight = run("optimize", serving, "--gpus", "2", "--set", "budget=100 USD/month", "--json")
    assert (tight.exit_code, json.loads(tight.stdout)["best"]) == (3, None)
    small = run("optimize", serving, "--gpus", "1", "--hardware", "l40s", "--json")
    assert (small.exit_code, json.loads(small.stdout)["closest"]) == (3, None)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimize.tp=[3]", "an empty space"),
        ("optimize.tp=[16]", "an empty space"),
        ("optimize.hardware=[]", "empty list"),
        ("optimize.hardware=[h1000]", "unknown hardware"),
        ("optimize.by=beauty", "unknown value"),
        ("optimize.precison=[fp8]", "unknown key"),
        ("optimize.offers=[nobody/none]", "unknown offer"),
        ("optimize.lowest_precision=fp32", "leave nothing to choose from"),
        ("optimize.lowest_top_k=64", "leave nothing to choose from"),
        ("optimize.top_k=[500]", "more experts than a token can choose from"),
    ],
)
def test_spaces_without_a_candidate(serving: Path, override: str, said: str) -> None:
    result = run("optimize", serving, "--set", override)
    assert (result.exit_code, said in result.stderr) == (2, True), result.output


def test_limits_of_quality_provider_and_region(serving: Path) -> None:
    asked = [*SPACE, "optimize.lowest_precision=bf16", "optimize.top_k=[4, 8]", "optimize.lowest_top_k=8"]
    found = optimize(
        serving, [*asked, "optimize.providers=[nebius]", "optimize.regions=[eu-north1]", "optimize.spot=true"]
    )
    assert found.best is not None
    assert "fp8" not in found.best.choice["formats"]
    assert found.best.choice["offer"].startswith("nebius/")
    assert found.best.choice["offer"].endswith("/spot")
    assert any("fewest allowed" in why for why in found.excluded.values())
    assert any("lowest allowed" in why for why in found.excluded.values())
    fewer = optimize(serving, ["optimize.top_k=[2]", "optimize.gpus=1"])
    assert simulate(load(serving, fewer.best.overrides)).provenance["model_notes"][-1].endswith("2, by the scenario")


def test_a_lifecycle_is_two_searches() -> None:
    path = Path(__file__).parents[2] / "scenarios/lifecycle-finetune-serve.yaml"
    result = run("optimize", path)
    assert (result.exit_code, "two searches" in result.stderr) == (2, True)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_pareto_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    a, b = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    front = {(a[i], b[i]) for i in pareto(a, b)}
    beaten = {p for p in points if any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert front == set(points) - beaten


@pytest.mark.parametrize("overrides", [[], ["serving.layout.tp=2", "serving.layout.dp=2", "serving.layout.ep=4"]])
def test_memory_at_many_limits_is_memory_at_each(serving: Path, overrides: list[str]) -> None:
    scenario = load(serving, overrides)
    s = scenario.serving
    tokens, seqs = np.array([2048.0, 8192.0, 16384.0]), np.array([16.0, 256.0, 1024.0])
    common = {"max_context_tokens": s.max_context_tokens, "mean_context_tokens": 1000.0}
    need, kv = serving_memory_by_limits(
        scenario.model, scenario.hardware, s.layout, s.precision, s.engine,
        max_num_batched_tokens=tokens[:, None], max_num_seqs=seqs[None, :], **common,
    )  # fmt: skip
    for i, t in enumerate(tokens):
        for j, q in enumerate(seqs):
            changed = [f"serving.engine.max_num_batched_tokens={t:.0f}", f"serving.engine.max_num_seqs={q:.0f}"]
            engine = load(serving, [*overrides, *changed]).serving.engine
            fit = serving_memory(scenario.model, scenario.hardware, s.layout, s.precision, engine, **common)
            assert need[i, j] == pytest.approx(fit.need_bytes, rel=1e-12)
            assert kv[i, j] == pytest.approx(fit.kv_capacity_tokens, rel=1e-12)


@pytest.mark.slow
def test_prefill_apart_is_searched_beside_all_on_the_same_gpus(serving: Path) -> None:
    asked = ["optimize.gpus=3", "optimize.prefill_replicas=[0, 1]", "optimize.prefill_tp=[1]", "optimize.tp=[1]"]
    asked += ["optimize.dp=[1]", "optimize.pp=[1]", "optimize.max_num_seqs=[64]", "budget=90000 USD/month"]
    found = optimize(serving, [*asked, "serving.traffic.rate=8 req/s"])
    pools = {c.choice["formats"] for c in (found.best, *found.front, *found.runners_up)}
    assert len(pools) >= 1
    apart = optimize(serving, [*asked, "optimize.prefill_replicas=[1]"])
    assert "prefill" in apart.best.choice["formats"]
    assert apart.best.n_gpus >= 2
    again = simulate(load(serving, apart.best.overrides))
    assert plan_to_json(again) == plan_to_json(apart.plan)
    assert again.serving.tpot_s.p90.value == apart.best.figures["tpot_s"]
    assert again.serving.ttft_s.p90.value == apart.best.figures["ttft_s"]
    stated = run("optimize", serving, "--set", "serving.prefill={tp: 1}", "--set", "optimize.prefill_replicas=[0, 1]")
    assert (stated.exit_code, "states a prefill pool already" in stated.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "said"),
    [("chat-autoscaled-day", "scales itself"), ("pretrain-two-phases", "laid out by hand"),
     ("rl-qwen3-30b", "laid out by hand")],
)  # fmt: skip
def test_scenarios_without_one_layout(name: str, said: str) -> None:
    result = run("optimize", Path(__file__).parents[2] / f"scenarios/{name}.yaml")
    assert (result.exit_code, said in result.stderr) == (2, True), result.output
