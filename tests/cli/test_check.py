"""``moeplan check``, ``init`` and ``schema`` on good input; what they print and what they load."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_files import SERVING, TRAINING, run, with_line

NUMERIC = ("numpy", "scipy", "pandas", "numba", "simpy", "pyarrow")
PROBE = """
import sys
from moeplan.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
loaded = sorted(name for name in {numeric!r} if name in sys.modules)
assert not loaded, loaded
"""


def _write(folder: Path, text: str, name: str = "s.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def _values(path: Path, *args: str) -> dict[str, dict[str, object]]:
    result = run("check", path, "--json", *args)
    assert result.exit_code == 0, result.output
    values: dict[str, dict[str, object]] = json.loads(result.stdout)["values"]
    return values


@pytest.mark.parametrize("command", ["help", "check", "show", "init", "schema"])
def test_loads_no_numeric_library(command: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,10,5\n")
    trace = with_line(with_line(with_line(SERVING, 10, "    trace: t.csv"), 11, ""), 12, "")
    path = _write(tmp_path, trace)
    args = {
        "help": ["--help"],
        "check": ["check", str(path)],
        "show": ["check", str(path), "--show", "--json"],
        "init": ["init", "training"],
        "schema": ["schema"],
    }[command]
    probe = PROBE.format(numeric=NUMERIC)
    done = subprocess.run([sys.executable, "-c", probe, *args], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_summary_is_one_line(tmp_path: Path) -> None:
    result = run("check", _write(tmp_path, SERVING))
    assert result.exit_code == 0
    assert result.stdout == ("ok: test: serving of Qwen3-30B-A3B, 1 x h100-sxm under vllm, 3.50 USD per GPU hour\n")
    assert result.stderr == ""


def test_units_reach_si(tmp_path: Path) -> None:
    values = _values(_write(tmp_path, SERVING))
    assert values["serving.slo.ttft_s"]["value"] == pytest.approx(0.5)
    assert values["serving.slo.tpot_s"]["value"] == pytest.approx(0.05)
    assert values["money.budget.limit_usd"]["value"] == pytest.approx(3000.0)
    assert values["serving.traffic.arrivals.rate_per_s"]["value"] == pytest.approx(4.0)
    training = _values(_write(tmp_path, TRAINING))
    assert training["training.work.n_tokens"]["value"] == pytest.approx(1e9)
    assert training["money.budget.deadline_s"]["value"] == pytest.approx(30 * 86400)
    assert training["money.budget.per"]["value"] == "run"


def test_origins(tmp_path: Path) -> None:
    path = _write(tmp_path, SERVING)
    values = _values(path, "--set", "serving.layout.tp=2")
    origin = {key: value["origin"] for key, value in values.items()}
    assert origin["serving.slo.ttft_s"] == {"how": "file", "where": f"{path}:13:15", "note": ""}
    assert origin["serving.layout.tp"] == {"how": "set", "where": "--set", "note": ""}
    assert origin["serving.layout.dp"]["how"] == "default"
    assert origin["serving.engine.kv_block_tokens"]["where"] == "engines/vllm.yaml"
    assert "block_size" in origin["serving.engine.kv_block_tokens"]["note"]
    assert origin["serving.precision.experts"] == {"how": "catalog", "where": "checkpoint of Qwen3-30B-A3B", "note": ""}
    assert origin["hardware.device.memory_bytes"]["how"] == "catalog"
    assert all(set(o) == {"how", "where", "note"} and o["where"] for o in origin.values())


def test_json_of_problems(tmp_path: Path) -> None:
    result = run("check", _write(tmp_path, with_line(SERVING, 10, "    rate: 4")), "--json")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert document["ok"] is False
    (problem,) = document["problems"]
    assert (problem["line"], problem["col"], problem["path"]) == (10, 11, "serving.traffic.rate")


def test_extends_and_set_take_the_last(tmp_path: Path) -> None:
    _write(tmp_path, SERVING, "base.yaml")
    path = _write(tmp_path, "extends: base.yaml\nserving:\n  traffic: {users: 20}\n  engine: {max_num_seqs: 32}\n")
    values = _values(path, "--set", "serving.engine.max_num_seqs=48", "--set", "budget=10 USD/month")
    assert values["serving.traffic.arrivals.kind"]["value"] == "closed_loop"  # users replaces the base's rate
    assert values["serving.traffic.arrivals.n_requests"]["value"] == 240
    assert values["serving.engine.max_num_seqs"]["value"] == 48
    assert values["serving.max_context_tokens"]["value"] == 8192
    assert values["serving.max_context_tokens"]["origin"]["where"].endswith("base.yaml:6:39")
    assert values["money.budget.limit_usd"]["value"] == pytest.approx(10.0)


def test_set_opens_a_short_form(tmp_path: Path) -> None:
    path = _write(tmp_path, with_line(SERVING, 6, "  engine: sglang"))
    values = _values(path, "--set", "serving.engine.max_model_len=4096", "--set", "price=2 USD/h")
    assert values["serving.engine.name"]["value"] == "sglang"
    assert values["serving.max_context_tokens"]["value"] == 4096
    assert values["money.offer.usd_per_gpu_hour"]["value"] == pytest.approx(2.0)


def test_set_reaches_into_a_list(tmp_path: Path) -> None:
    text = SERVING + "references:\n  - {quantity: serving.requests_per_s, value: 3, source: a paper}\n"
    values = _values(_write(tmp_path, text), "--set", "references.0.value=4")
    assert values["references[0].value"]["value"] == pytest.approx(4.0)


def test_routing_defaults_follow_experts_and_phase(tmp_path: Path) -> None:
    path = _write(tmp_path, with_line(SERVING, 16, ""))
    fine = _values(path)
    coarse = _values(path, "--set", "model=Mixtral-8x7B", "--set", "serving.layout.tp=2")
    stated = _values(path, "--set", "routing.zipf=0.9")
    assert [v["routing.zipf_exponent"]["value"] for v in (fine, coarse, stated)] == [0.5, 0.2, 0.9]
    assert [v["training_routing.zipf_exponent"]["value"] for v in (fine, coarse, stated)] == [0.2, 0.2, 0.9]
    assert fine["routing.zipf_exponent"]["origin"]["where"] == "routing.yaml"


def test_largest_seed_is_kept_exactly(tmp_path: Path) -> None:
    values = _values(_write(tmp_path, with_line(SERVING, 1, f"seed: {2**63 - 1}")))
    assert values["seed"]["value"] == 2**63 - 1


def test_compared_model_must_hold_the_requests(tmp_path: Path) -> None:
    text = with_line(SERVING, 11, "    input_tokens: 5000")
    text = with_line(text, 16, "compare_with: {model: OLMoE-1B-7B, quality_note: none}")
    result = run("check", _write(tmp_path, text))
    assert result.exit_code == 2
    assert ":16:23: compare_with.model: the longest request has 5200 tokens" in result.stderr


def test_currency_by_the_scenarios_own_rate(tmp_path: Path) -> None:
    text = with_line(SERVING, 15, "budget: 3000 EUR/month\nexchange_rates: {EUR: 1.10 USD}")
    assert _values(_write(tmp_path, text))["money.budget.limit_usd"]["value"] == pytest.approx(3300.0)


def test_owned_hardware_is_read_whole(tmp_path: Path) -> None:
    own = (
        "{purchase: 30 kUSD, lifetime: 4 years, residual: 10 %, interest: 6 %, electricity: 0.20 USD/kWh, power: 1 kW,"
        " date: 2026-11}"
    )
    path = _write(tmp_path, with_line(SERVING, 14, f"price: {{own: {own}}}"))
    assert run("check", path).stdout.endswith(", bought hardware\n")
    values = _values(path)
    assert values["money.offer.term"]["value"] == "own"
    assert values["money.ownership.purchase_usd"]["value"] == 30000
    assert values["money.ownership.lifetime_months"]["value"] == 48
    assert values["money.ownership.resale_frac"]["value"] == pytest.approx(0.1)
    assert values["money.ownership.interest_frac_per_year"]["value"] == pytest.approx(0.06)
    assert values["money.ownership.usd_per_j"]["value"] == pytest.approx(0.20 / 3.6e6)


def test_electricity_of_the_catalogue_at_the_scenarios_rate(tmp_path: Path) -> None:
    own = "{purchase: 30000 USD, lifetime: 4 years, electricity: Germany business, date: 2026-11}"
    text = with_line(SERVING, 14, f"price: {{own: {own}}}\nexchange_rates: {{EUR: 1.10 USD}}")
    values = _values(_write(tmp_path, text))
    assert values["money.ownership.usd_per_j"]["value"] == pytest.approx(0.233 * 1.10 / 3.6e6)
    assert values["prices[1].age_days"]["value"] > 90
    result = run("check", _write(tmp_path, with_line(SERVING, 14, f"price: {{own: {own}}}")))
    assert result.exit_code == 2
    assert "price.own.electricity: unknown currency EUR" in result.stderr


def test_engine_defaults_follow_device_and_layout(tmp_path: Path) -> None:
    path = _write(tmp_path, SERVING)
    large = _values(path)
    small = _values(path, "--set", "hardware=l40s")
    assert large["serving.engine.max_num_batched_tokens"]["value"] == 8192
    assert small["serving.engine.max_num_batched_tokens"]["value"] == 2048
    a100 = _values(path, "--set", "hardware=a100-sxm-80gb")
    assert a100["serving.engine.max_num_seqs"]["value"] == 256  # vLLM excepts the A100 by name
    sglang = [_values(path, "--set", "serving.engine.name=sglang", "--set", f"serving.layout.tp={tp}") for tp in (1, 4)]
    assert [v["serving.engine.cuda_graph_max_tokens"]["value"] for v in sglang] == [256, 512]


def test_trace_with_its_own_columns_keeps_arrival_and_lengths(tmp_path: Path) -> None:
    from moeplan.files.load import load

    rows = ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:15:46.6805900,374,44"]
    (tmp_path / "t.csv").write_text("\n".join([*rows, "2023-11-16 18:15:50.9951690,396,109"]) + "\n")
    text = with_line(with_line(with_line(SERVING, 10, "    trace: t.csv"), 11, ""), 12, "")
    traffic = load(_write(tmp_path, text)).serving.traffic
    assert traffic.arrivals.kind == "trace"
    assert traffic.arrivals.n_requests == 2
    assert traffic.trace.arrival_s.tolist() == pytest.approx([0.0, 4.314579], abs=1e-6)
    assert traffic.trace.input_tokens.tolist() == [374, 396]
    assert traffic.trace.output_tokens.tolist() == [44, 109]
    assert "CC BY" in traffic.trace.attribution


@pytest.mark.parametrize("kind", ["serving", "training", "lifecycle"])
def test_starters_pass_check(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    assert run("init", kind, path).exit_code == 0
    result = run("check", path)
    assert result.exit_code == 0, result.output
    assert f": {kind} of " in result.stdout
    printed = run("init", kind)
    assert printed.stdout == path.read_text(encoding="utf-8")


def test_init_never_overwrites(tmp_path: Path) -> None:
    path = _write(tmp_path, "mine")
    result = run("init", "serving", path)
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert path.read_text() == "mine"
    result = run("init", "serving", tmp_path / "no" / "folder.yaml")
    assert (result.exit_code, "cannot be written" in result.stderr) == (2, True)


@pytest.fixture(scope="module")
def published_schema() -> dict[str, object]:
    schema: dict[str, object] = json.loads(run("schema").stdout)
    return schema


@pytest.mark.parametrize("kind", ["serving", "training", "lifecycle"])
def test_starters_fit_the_published_schema(kind: str, published_schema: dict[str, object]) -> None:
    validator = jsonschema.Draft202012Validator(published_schema)
    validator.validate(yaml.safe_load(run("init", kind).stdout))


def test_published_schema_refuses_unknown_keys(published_schema: dict[str, object]) -> None:
    document = yaml.safe_load(SERVING) | {"ruoting": 1}
    with pytest.raises(jsonschema.ValidationError, match="ruoting"):
        jsonschema.Draft202012Validator(published_schema).validate(document)


def test_reference_page_is_the_schemas() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "scenario.md"
    text = page.read_text(encoding="utf-8")
    assert text == run("schema", "--markdown").stdout, "run: moeplan schema --markdown > docs/reference/scenario.md"


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_damaged_scenarios_are_refused_or_read(seed: int) -> None:
    """Random damage to the starters ends in a scenario or in an InputError, never in another exception."""
    from moeplan.errors import InputError
    from moeplan.files.locate import data_folder
    from moeplan.files.scenario.resolve import resolve
    from moeplan.files.yaml_tree import parse_yaml

    rng = random.Random(seed)
    folder = data_folder("starters")
    text = (folder / f"{rng.choice(['serving', 'training', 'lifecycle'])}.yaml").read_text(encoding="utf-8")
    junk = [
        "-",
        "0",
        "1e400",
        ":",
        "{",
        "[",
        '"',
        "\t",
        "null",
        "GB",
        "999999999999",
        ".5",
        "%",
        "\n",
        " ",
        "é",
        "*",
        "!",
    ]
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text))
        end = min(len(text), start + rng.randint(1, 12))
        piece = rng.choice([*junk, "", text[rng.randrange(len(text)) :][:10]])
        text = text[:start] + piece + text[end:]
    try:
        tree = parse_yaml(text, "damaged.yaml")
        if isinstance(tree.value, dict):
            resolve(tree, folder / "damaged.yaml", arrays=False)
    except InputError as error:
        assert str(error)  # noqa: PT017
