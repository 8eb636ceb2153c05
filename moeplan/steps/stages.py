"""Which layers a pipeline stage holds: placed by the user, or balanced by arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from moeplan.spec.layout import TrainingLayout
from moeplan.spec.model import Layer, ModelArchitecture, MoeMlp, counted
from moeplan.spec.precision import FORMATS
from moeplan.spec.workload import TrainingWork


@dataclass(frozen=True, slots=True)
class Stage:
    """One pipeline stage."""

    layers: tuple[Layer, ...]  # multi-token-prediction modules behind the others
    embedding: bool
    n_heads: int  # passes through the output head: one, and one more for each MTP module

    @property
    def head(self) -> bool:
        return self.n_heads > 0

    @property
    def key(self) -> tuple[object, ...]:
        """Equal where two stages hold the same."""
        return (*((id(layer), n) for layer, n in self.counted()), self.embedding, self.n_heads)

    def counted(self) -> tuple[tuple[Layer, int], ...]:
        """Distinct layers with how often each occurs."""
        return counted(self.layers)


def joined(stages: Iterable[Stage]) -> Stage:
    """What a rank holds of several (virtual) stages."""
    found = tuple(stages)
    layers = tuple(layer for stage in found for layer in stage.layers)
    return Stage(layers, any(s.embedding for s in found), sum(s.n_heads for s in found))


def rank_stages(positions: Sequence[Stage], layout: TrainingLayout) -> list[Stage]:
    """What each pipeline rank computes: position i belongs to rank i modulo pp."""
    return [joined(positions[rank :: layout.pp]) for rank in range(layout.pp)]


def training_stages(model: ModelArchitecture, layout: TrainingLayout, work: TrainingWork) -> list[Stage]:
    """The stages in the order a micro batch passes them: pp x vpp where placed, else pp balanced ones.

    Balanced: consecutive layers, by arithmetic with the output head counted on the last. Pretraining runs the
    multi-token-prediction modules, and the head once more for each, on the last stage. Real runs balance by hand
    (DeepSeek-V3, arXiv:2412.19437, section 3.2), so an even count would be the exception. Raises ValueError when there
    are more stages than layers, or the placement does not hold the model.
    """
    extra = model.mtp_layers if work.method == "pretrain" else ()
    if layout.stages:
        return _placed(model, extra, layout)
    if layout.pp > model.n_layers:
        raise ValueError(f"pp {layout.pp} exceeds the {model.n_layers} layers of {model.name}")
    layers = (*model.layers, *extra)
    active = {id(layer): active_params(layer) for layer, _ in counted(layers)}
    weight = [active[id(layer)] for layer in layers]
    # the head stays in 16 bit, where a parameter takes longer than in 8
    slower = max(1.0, 16.0 / FORMATS[work.compute_format].bits)
    tail = slower * (1 + len(extra)) * model.vocab_size * model.hidden_size
    low, high = max(weight), sum(weight) + tail
    while high - low > 1e-3 * high:  # bisection on the heaviest stage's load
        middle = (low + high) / 2
        low, high = (low, middle) if _fill(weight, tail, layout.pp, middle) else (middle, high)
    ends = _fill(weight, tail, layout.pp, high)
    if ends is None:
        raise ValueError(f"{model.name} cannot be cut into {layout.pp} stages")
    last = layout.pp - 1
    return [
        Stage(layers[start:end], i == 0, 1 + len(extra) if i == last else 0)
        for i, (start, end) in enumerate(pairwise((0, *ends)))
    ]


def placement_problem(model: ModelArchitecture, layout: TrainingLayout, n_mtp: int) -> str | None:
    """Why ``layout.stages`` does not hold the model exactly once, None if it does."""
    stages = layout.stages
    n_positions = layout.pp * layout.vpp
    if len(stages) != n_positions:
        return f"places {len(stages)} stages where pp x vpp = {n_positions}"
    held = sum(stage.n_layers for stage in stages)
    if held != model.n_layers:
        return f"places {held} layers of the {model.n_layers} of {model.name}"
    if sum(stage.n_mtp for stage in stages) != n_mtp:
        return f"places {sum(stage.n_mtp for stage in stages)} MTP modules of {n_mtp}"
    if [i for i, stage in enumerate(stages) if stage.embedding] != [0]:
        return "the embedding belongs on the first stage, once"
    if [i for i, stage in enumerate(stages) if stage.head] != [n_positions - 1]:
        return "the loss belongs on the last stage, once"
    return None


def _placed(model: ModelArchitecture, extra: tuple[Layer, ...], layout: TrainingLayout) -> list[Stage]:
    problem = placement_problem(model, layout, len(extra))
    if problem:
        raise ValueError(f"the pipeline layout {problem}")
    found, layer, module = [], 0, 0
    for plan in layout.stages:
        own = (*model.layers[layer : layer + plan.n_layers], *extra[module : module + plan.n_mtp])
        found.append(Stage(own, plan.embedding, (1 + len(extra)) * plan.head))
        layer, module = layer + plan.n_layers, module + plan.n_mtp
    return found


def _fill(weight: list[float], tail: float, pp: int, most: float) -> list[int] | None:
    """Ends of ``pp`` non-empty runs of at most ``most`` each, the last with ``tail`` on top; None if impossible.

    Filled from the last stage backwards. One layer is the least a stage takes, so the last may exceed ``most`` by that.
    """
    ends, end = [], len(weight)
    for stage in reversed(range(pp)):
        load, start = (tail if stage == pp - 1 else 0.0), end
        while start > stage and (start == end or load + weight[start - 1] <= most):
            start -= 1
            load += weight[start]
        ends.append(end)
        end = start
    return ends[::-1] if end == 0 else None


def active_params(layer: Layer) -> float:
    """Parameters of a layer one token meets."""
    idle = sum((b.n_experts - b.top_k) * b.n_params_per_expert for b in layer.blocks if isinstance(b, MoeMlp))
    return layer.n_params - idle
