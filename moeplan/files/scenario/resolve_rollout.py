"""How reinforcement learning makes its sequences: the rollout section of a training run."""

from __future__ import annotations

from moeplan.files.scenario.resolve_checks import check_serving_layout
from moeplan.files.scenario.resolve_serving import resolve_engine, resolve_layout, resolve_precision
from moeplan.files.scenario.resolve_traffic import check_longest, resolve_lengths
from moeplan.files.scenario.resolving import Resolving
from moeplan.files.scenario.schema_training import RolloutFile
from moeplan.files.scenario.schema_walk import Loc
from moeplan.spec.hardware import Hardware
from moeplan.spec.model import ModelArchitecture
from moeplan.spec.scenario import Rollout, Serving
from moeplan.spec.workload import Arrivals, Slo, Traffic

_LOC: Loc = ("training", "rollout")


def resolve_rollout(
    rs: Resolving, file: RolloutFile, model: ModelArchitecture, hardware: Hardware, n_train_gpus: int, batch: int
) -> Rollout:
    """``batch`` sequences are one optimizer step of the ``n_train_gpus`` that learn."""
    at = "training.rollout"
    layout = resolve_layout(rs, file.layout, (*_LOC, "layout"), f"{at}.layout")
    check_serving_layout(rs, (*_LOC, "layout"), layout, model, hardware, None)
    precision = resolve_precision(
        rs, file.precision, (*_LOC, "precision"), f"{at}.precision", model, hardware.device, file.engine.name
    )
    engine = resolve_engine(rs, file.engine, hardware.device, layout.tp, (*_LOC, "engine"), f"{at}.engine")
    context = file.engine.max_model_len or model.max_context_tokens
    prompt, response = (
        resolve_lengths(rs, own, (*_LOC, key), f"{at}.{key}", context)
        for key, own in (("prompt_length", file.prompt_length), ("response_length", file.response_length))
    )
    for key in ("prompts", "samples", "reference_model", "placement"):
        rs.note(f"{at}.{key}", (*_LOC, key))
    n_sequences = file.prompts * file.samples
    traffic = Traffic(Arrivals("all_at_once", None, None, n_sequences, 0), None, prompt, response)
    check_longest(rs, (*_LOC, "response_length"), traffic, context)
    if n_sequences % batch:
        what = f"prompts x samples = {n_sequences} sequences are not a whole number of optimizer steps of {batch}"
        rs.problem((*_LOC, "prompts"), what, file.prompts, hint="change prompts, samples, or training.global_batch")
    colocated = file.placement == "colocated"
    if colocated and layout.n_gpus > n_train_gpus:
        what = f"{layout.n_gpus} GPUs to generate on, more than the {n_train_gpus} that train"
        rs.problem((*_LOC, "layout"), what, hint="fewer replicas, or placement: separate")
    serving = Serving(layout, precision, engine, traffic, Slo(None, None, None, 50.0), context)
    return Rollout(serving, colocated, file.reference_model)
