"""The ``routing:`` section: presets and histogram files read, and checked against the model and the layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from moeplan.errors import did_you_mean
from moeplan.files.catalog.model_data import ROUTING, default_routing
from moeplan.files.locate import data_folder
from moeplan.files.scenario.histogram import read_histogram
from moeplan.files.scenario.resolving import Resolving
from moeplan.files.scenario.schema_routing import CorrelationFile, PopularityFile, RoutingFile
from moeplan.files.scenario.schema_walk import Loc
from moeplan.files.yaml_tree import load_yaml
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.routing import Correlation, Law, Placement, Popularity, RoutingAssumption

SECTION: Loc = ("routing",)
# Values of a law beyond which popularity is none that was ever seen, and weights run out of numbers. A law's draws by
# Zipf's exponent 4 give the first of 128 experts 92 % of the weight.
_VALUES: dict[str, tuple[float, float]] = {"zipf": (0.0, 4.0), "lognormal": (0.0, 4.0), "dirichlet": (0.01, 1000.0)}


def resolve_routing(
    rs: Resolving,
    file: RoutingFile,
    model: ModelArchitecture,
    seed: int,
    degrees: dict[str, int],
    other: ModelArchitecture | None,
) -> tuple[RoutingAssumption, RoutingAssumption]:
    """Routing in service and while training.

    ``degrees``: expert-parallel degree by the path of its layout; ``other``: a model it is compared with.
    """
    if model.is_moe:
        _check_placement(rs, file, model, degrees)
    elif file != RoutingFile():
        rs.problem(SECTION, f"{model.name} is dense: it routes nothing")
    found = _assumption(rs, file, model, seed, training=False)
    if other is not None and found.law.law == "histogram":
        width = len(found.law.histogram[0])
        if any(block.n_experts != width for block in other.moe_blocks):
            rs.problem(("compare_with", "model"), f"the histogram has {width} experts, {other.name} has others")
    return found, _assumption(rs, file, model, seed, training=True)


def _assumption(
    rs: Resolving, file: RoutingFile, model: ModelArchitecture, seed: int, *, training: bool
) -> RoutingAssumption:
    target = "training_routing" if training else "routing"
    base = _popularity(rs, file, model, target, training=training)
    if file.correlation is not None:
        base = replace(base, correlation=_correlation(file.correlation))
    if file.router == "hash" and base.law.law == "histogram":
        rs.problem((*SECTION, "router"), "hash needs the popularity of token ids, a histogram is of experts")
    return replace(
        base,
        router=cast(Literal["top_k", "expert_choice", "hash"], file.router),
        capacity_factor=file.capacity_factor,
        drop=cast(Literal["order", "priority"], file.drop),
        drift_half_life_steps=None if file.drift_half_life is None else float(file.drift_half_life),
        balance=cast(Literal["none", "aux_loss", "loss_free"], file.balance.method if training else "none"),
        balance_rate=file.balance.rate,
        placement=cast(Placement, file.placement),
        placement_map=None if file.placement_map is None else tuple(tuple(row) for row in file.placement_map),
        n_redundant_experts=0 if training else file.redundant_experts,
        rebalance_steps=file.rebalance,
        n_token_ids=model.vocab_size if file.router == "hash" else 0,
        seed=seed,
    )


def _popularity(
    rs: Resolving, file: RoutingFile, model: ModelArchitecture, target: str, *, training: bool
) -> RoutingAssumption:
    """The first stated of the keys that apply, else the default."""
    if training and file.training_zipf is not None:
        rs.note(target, (*SECTION, "training_zipf"))
        return RoutingAssumption(file.training_zipf, "stated in the scenario")
    for key in ("zipf", "popularity", "preset"):
        if getattr(file, key) is not None:
            rs.note(target, (*SECTION, key))
    if file.zipf is not None:
        return RoutingAssumption(file.zipf, "stated in the scenario")
    if file.popularity is not None:
        law = _law(rs, file.popularity, model, (*SECTION, "popularity"), None)
        return RoutingAssumption(0.0, "stated in the scenario", law)
    if file.preset is not None:
        return _preset(rs, file.preset, model)
    default = default_routing(model, training=training)
    rs.derived(target, "default", ROUTING, default.note)
    return default


def presets() -> tuple[str, ...]:
    """Names of the shipped presets."""
    return tuple(sorted(path.stem for path in data_folder("routing").glob("*.yaml")))


def _preset(rs: Resolving, name: str, model: ModelArchitecture) -> RoutingAssumption:
    loc = (*SECTION, "preset")
    if name not in presets():
        rs.problem(loc, "unknown preset", name, ", ".join(presets()), did_you_mean(name, presets()))
        return RoutingAssumption(0.0, "")
    entry: dict[str, Any] = load_yaml(data_folder("routing") / f"{name}.yaml", what="routing preset").plain()
    law = _law(rs, PopularityFile.model_validate(entry["popularity"]), model, loc, data_folder("routing"))
    note = f"preset {name}, {entry['kind']} {entry['date']}: {entry['source']}"
    found = RoutingAssumption(0.0, note, law)
    if "correlation" in entry:
        found = replace(found, correlation=_correlation(CorrelationFile.model_validate(entry["correlation"])))
    return found


def _correlation(file: CorrelationFile) -> Correlation:
    return Correlation(file.topics, file.spread, file.tokens)


def _law(rs: Resolving, file: PopularityFile, model: ModelArchitecture, loc: Loc, folder: Path | None) -> Popularity:
    """``folder``: where a preset's histogram lies; None for a file of the user's."""
    if file.histogram is not None:
        n_experts = {block.n_experts for block in model.moe_blocks}
        if len(n_experts) != 1:
            return Popularity("uniform")  # a dense model has its own problem
        name, at = file.histogram, loc if folder else (*loc, "histogram")
        counts = rs.attempt(
            at, lambda: read_histogram(folder / name if folder else rs.inside(name, at), n_experts.pop())
        )
        if counts is not None and len(counts) > len(model.moe_blocks):
            what = f"{len(counts)} layers, but {model.name} has {len(model.moe_blocks)} MoE layers"
            rs.problem(at, what)
        return Popularity("histogram", histogram=counts) if counts else Popularity("uniform")
    law = cast(Law, file.law)
    value = file.value
    if law == "uniform":
        if value is not None:
            rs.problem((*loc, "value"), "uniform has no value", value)
        return Popularity("uniform")
    low, high = _VALUES[law]
    if value is None or not low <= value <= high:
        what = f"{law} needs a value" if value is None else "out of range"
        rs.problem((*loc, "value"), what, "" if value is None else value, f"{low:g} to {high:g}")
        return Popularity("uniform")
    if file.group_spread and (law != "lognormal" or file.group_spread > value):
        rs.problem((*loc, "group_spread"), "part of a lognormal's value", file.group_spread, f"at most {value:g}")
        return Popularity("uniform")
    return Popularity(law, value, file.group_spread)


def _check_placement(rs: Resolving, file: RoutingFile, model: ModelArchitecture, degrees: dict[str, int]) -> None:
    redundant: Loc = (*SECTION, "redundant_experts")
    balanced = file.placement in ("greedy", "hierarchical")
    if file.rebalance is not None and (file.drift_half_life is None or not balanced):
        rs.problem((*SECTION, "rebalance"), "new placements need a `drift_half_life` and a balanced `placement`",
                   file.rebalance, hint="placement: greedy or hierarchical")  # fmt: skip
    if file.balance.method != "none" and file.router != "top_k":
        rs.problem((*SECTION, "balance"), f"{file.router} routing has no gate to balance", file.balance.method)
    if file.balance.method != "none" and "training.layout.ep" not in degrees and not rs.problems:
        rs.problem((*SECTION, "balance"), "a controller acts while training, and there is no `training` section",
                   file.balance.method)  # fmt: skip
    if file.redundant_experts and "serving.layout.ep" not in degrees and not rs.problems:
        rs.problem(redundant, "copies of experts are for serving: a training run keeps one of each",
                   file.redundant_experts)  # fmt: skip
    if file.redundant_experts and not balanced:
        rs.problem((*SECTION, "placement"), "redundant experts need a balanced placement", file.placement,
                   "greedy, hierarchical")  # fmt: skip
    for n_experts in sorted({block.n_experts for block in model.moe_blocks}):
        for name, ep in degrees.items():
            slots = n_experts + file.redundant_experts
            if file.redundant_experts and slots % ep and name == "serving.layout.ep":
                what = f"{n_experts} experts and {file.redundant_experts} copies do not divide over {name} = {ep}"
                rs.problem(redundant, what, file.redundant_experts, f"{-n_experts % ep} plus a multiple of {ep}")
            if file.placement_map is not None:
                _check_map(rs, file.placement_map, n_experts, name, ep)


def _check_map(rs: Resolving, rows: list[list[int]], n_experts: int, name: str, ep: int) -> None:
    loc: Loc = (*SECTION, "placement_map")
    if len(rows) != ep:
        rs.problem(loc, f"one row per GPU is needed, {name} = {ep}", len(rows), str(ep))
        return
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        rs.problem(loc, "every GPU must hold as many experts", ", ".join(str(len(row)) for row in rows))
        return
    for i, row in enumerate(rows):
        for j, expert in enumerate(row):
            if expert >= n_experts:
                rs.problem((*loc, i, j), "no such expert", expert, f"0 to {n_experts - 1}")
    homeless = sorted(set(range(n_experts)) - {expert for row in rows for expert in row})
    if homeless:
        shown = ", ".join(map(str, homeless[:10])) + (", ..." if len(homeless) > 10 else "")
        rs.problem(loc, f"{len(homeless)} experts are placed nowhere: {shown}")
