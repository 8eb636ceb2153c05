"""How every number of a plan comes about: one row for a family of paths, the first that matches counts.

``inputs`` name what goes in: a path of the plan; ``@`` a value of the scenario (a pattern); ``!`` an error learnt from
measured runs; ``#`` the fitted parameters of the operations; ``%`` a value of the hardware profile (a pattern).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Rule:
    pattern: str
    formula: str
    inputs: tuple[str, ...]
    method: str  # page of docs/method, with its section


_TRAFFIC = "@serving.traffic.*"
_SIMULATED = ("time_breakdown", _TRAFFIC, "@serving.engine.max_*", "@serving.layout.*", "memory.kv_capacity_tokens",
              "!step", "#")  # fmt: skip
_RENT = ("@money.offer.usd_per_gpu_hour", "@money.hours_per_month", "@serving.layout.*", "@training.layout.*",
         "@money.commitment*", "@money.ownership*", "@money.tax_frac")  # fmt: skip

RULES: tuple[Rule, ...] = (
    # what the plan is about
    Rule("moeplan", "the version that made the plan", (), "../contributing.md"),
    Rule("scenario", "name: of the scenario file, else the file's name", ("@name",), "../reference/scenario.md"),
    Rule("kind", "told by the sections that the scenario has", ("@kind",), "../reference/scenario.md"),
    Rule("seed", "seed of everything random", ("@seed",), "../reference/scenario.md"),
    Rule("feasible", "true where every check passes; remarks never fail", ("verdicts",), "uncertainty.md"),
    Rule("verdicts.*", "what the check needs beside what there is; ok where it is met at the predicted value",
         ("@serving.slo.*", "@money.budget.*", "memory.per_gpu_bytes", "memory.capacity_bytes"),
         "uncertainty.md"),
    # serving
    Rule("serving.ttft_s*", "first token's time minus arrival of every counted request of the event simulation, then "
         "the statistic; the interval is the hull of simulations at both ends of the step error, widened by the "
         "sampling error of the simulation, and never narrower than the errors of published TTFTs",
         (*_SIMULATED, "@serving.engine.front_*", "@serving.engine.request_overhead_s", "!ttft"),
         "serving.md#metrics"),
    Rule("serving.tpot_s*", "(last token - first token) / (output tokens - 1) of every counted request of the event "
         "simulation, then the statistic; hull over the step error, with the simulation's sampling error", _SIMULATED,
         "serving.md#metrics"),
    Rule("serving.itl_s*", "time between consecutive tokens of an answer over all tokens, then the statistic",
         _SIMULATED,
         "serving.md#metrics"),
    Rule("serving.e2e_s*", "last token's time minus arrival of every counted request, then the statistic; hull over "
         "the "
         "step error, with the simulation's sampling error", _SIMULATED, "serving.md#metrics"),
    Rule("serving.capacity_requests_per_s", "requests/s of a standing queue: requests like the scenario's, all there "
         "at "
         "time zero, worked off by the event simulation; one replica is flooded, others are its equals",
         (*_SIMULATED, "!throughput"), "serving.md#metrics"),
    Rule("serving.goodput_requests_per_s", "requests/s that meet every latency target of their class",
         (*_SIMULATED, "@serving.slo.*"), "serving.md#metrics"),
    Rule("serving.slo_met_frac", "requests inside every latency target / requests that count",
         (*_SIMULATED, "@serving.slo.*"), "serving.md#metrics"),
    Rule("serving.output_tokens_per_s_per_gpu", "output tokens/s / GPUs of all replicas",
         ("serving.output_tokens_per_s", "@serving.layout.*"), "serving.md#metrics"),
    Rule("serving.utilization_frac", "time in which an iteration runs / simulated time, mean over replicas; at most 1",
         _SIMULATED, "serving.md#metrics"),
    Rule("serving.*requests_per_s*", "counted requests that end / time of the counted window of the event simulation; "
         "where the deployment keeps up this is what is asked for", (*_SIMULATED, "!throughput"), "serving.md#metrics"),
    Rule("serving.*tokens_per_s*", "tokens of the counted requests / time of the counted window of the event "
         "simulation",
         (*_SIMULATED, "!throughput"), "serving.md#metrics"),
    Rule("serving.saturated", "true where the second half of the run waits longer than the first by more than three "
         "standard errors", _SIMULATED, "serving.md#metrics"),
    Rule("serving.n_requests_*", "a count of the event simulation", (_TRAFFIC,), "serving.md#metrics"),
    Rule("serving.outcomes.*", "a count over the requests of the event simulation", (_TRAFFIC, "@serving.fleet.*"),
         "fleet.md#metrics"),
    Rule("serving.reasons*", "requests without an answer, by why", (_TRAFFIC, "@serving.fleet.*"), "fleet.md#metrics"),
    Rule("serving.classes*", "as for all requests, over those of one class and its own targets",
         (*_SIMULATED, "@serving.slo.*"), "traffic.md#classes"),
    Rule("serving.timeline*", "state of all replicas at an instant of the simulation at the predicted step time",
         _SIMULATED, "fleet.md#metrics"),
    Rule("serving.latency_cdf*", "quantile of the counted requests, in steps of 1 %, at the predicted step time",
         _SIMULATED, "serving.md#metrics"),
    Rule("serving.batch_size*", "share of the iteration time by the number of sequences that run", _SIMULATED,
         "serving.md#metrics"),
    Rule("serving.usage*", "hardware held during the simulated run, cold starts and draining included",
         (*_SIMULATED, "@serving.fleet.*"), "fleet.md#metrics"),
    Rule("serving*", "a figure of the event simulation of the engine", _SIMULATED, "serving.md"),
    # training
    Rule("training.step_time_s", "sum of the parts of one optimizer step: micro batches through the pipeline schedule, "
         "communication that is not hidden, the optimizer",
         ("time_breakdown", "@training.layout.*", "@training.work.*", "!training_step", "#"), "training.md#step"),
    Rule("training.tokens_per_s", "tokens of a global batch / step time",
         ("training.step_time_s", "@training.work.*"), "training.md#step"),
    Rule("training.tokens_per_s_per_gpu", "tokens/s / GPUs of the layout",
         ("training.tokens_per_s", "@training.layout.*"), "training.md#step"),
    Rule("training.tflop_per_s_per_gpu", "model FLOP of a step / step time / GPUs",
         ("training.step_time_s", "@training.work.*", "@training.layout.*"), "training.md#model-flop-and-mfu"),
    Rule("training.mfu_frac", "model FLOP of a step / (step time x GPUs x dense peak of the format)",
         ("training.step_time_s", "%dense_rates.*", "@training.layout.*"), "training.md#model-flop-and-mfu"),
    Rule("training.hfu_frac", "as the MFU, with the FLOP of what is recomputed",
         ("training.step_time_s", "%dense_rates.*", "@training.layout.*"), "training.md#model-flop-and-mfu"),
    Rule("training.wall_time_s", "steps x step time / goodput; the interval spans simulated runs with failures, joined "
         "with the error of the step time",
         ("training.n_steps", "training.step_time_s", "training.goodput_frac", "@training.reliability.*"),
         "training.md#the-run"),
    Rule("training.gpu_hours", "wall time x GPUs held, spares included",
         ("training.wall_time_s", "training.run.n_gpus_held"), "training.md#the-run"),
    Rule("training.goodput_frac", "work / wall time, mean over simulated runs with failures, checkpoints and restarts",
         ("training.run.n_failures", "training.run.checkpoint_interval_s", "@training.reliability.*"),
         "training.md#the-run"),
    Rule("training.n_steps", "tokens / tokens of a global batch, rounded up", ("@training.work.*",),
         "training.md#step"),
    Rule("training.peak_memory_bytes*", "sum of the parts on the fullest GPU", ("memory.breakdown",
         "@training.layout.*"),
         "memory.md#training"),
    Rule("training.hidden_s*", "communication of a step that runs behind computation", ("time_breakdown", "#"),
         "training.md#step"),
    Rule("training.phases*", "as the figures of the run, for one phase of it", ("@training.work.*",
         "training.step_time_s"),
         "training.md#work-other-than-one-pretraining-phase"),
    Rule("training.run.*", "simulated runs in calendar time: failures are Poisson by cause, each takes the run back to "
         "its last durable checkpoint", ("@training.reliability.*", "training.step_time_s", "training.n_steps"),
         "training.md#the-run"),
    Rule("training*", "a figure of the training step or of the simulated run",
         ("time_breakdown", "@training.work.*", "!training_step", "#"), "training.md"),
    # memory
    Rule("memory.per_gpu_bytes", "sum of the breakdown on the fullest GPU", ("memory.breakdown",), "memory.md"),
    Rule("memory.capacity_bytes", "memory of the device as its profile states it", ("%memory.*",), "memory.md"),
    Rule("memory.kv_capacity_tokens", "memory left for the KV cache / bytes of one token's keys and values, of a "
         "replica",
         ("memory.breakdown.kv_cache", "@serving.precision.kv_cache", "@serving.engine.memory_utilization_frac",
          "@serving.engine.reserve_bytes"), "memory.md#serving"),
    Rule("memory.breakdown.weights*", "parameters of that kind on one GPU x bytes of their number format",
         ("@model.name", "@serving.precision.*", "@serving.layout.*", "@training.layout.*"), "memory.md#weights"),
    Rule("memory.*", "bytes of one kind on the fullest GPU",
         ("@model.name", "@serving.*layout.*", "@serving.engine.reserve_bytes", "@training.layout.*",
          "@training.work.*"), "memory.md"),
    # routing
    Rule("routing.all_to_all_bytes_per_token", "copies of a token to other GPUs, one per distinct GPU x width x bytes "
         "of "
         "dispatch and combine, all layers", ("@routing.*", "@model.name", "@serving.layout.*", "@training.layout.*"),
         "routing.md"),
    Rule("routing.*", "routing simulated step by step under the stated popularity; the interval spans no skew to twice "
         "the skew", ("@routing.zipf_exponent", "@routing.router", "@training_routing.zipf_exponent", "@model.name"),
         "routing.md"),
    # time
    Rule("time_breakdown*", "operations of that kind in the mean iteration or step: each by its own cost model with "
         "fitted "
         "parameters, times the layers", ("#", "%memory.bandwidth", "%dense_rates.*"), "steps.md#composition"),
    # money
    Rule("cost.usd_per_hour", "cost of a month / hours of a month (training: of the run / its hours)",
         ("cost.usd_per_month", "cost.total_usd", "@money.hours_per_month"), "money.md#the-bill"),
    Rule("cost.usd_per_month", "sum of the bill of a month: GPU hours x price, electricity, storage, egress, people, "
         "tax",
         ("cost.breakdown", *_RENT), "money.md#the-bill"),
    Rule("cost.usd_per_million_output_tokens", "cost of an hour / output tokens of an hour x 1,000,000",
         ("cost.usd_per_month", "serving.output_tokens_per_s", "@money.hours_per_month"), "money.md#the-bill"),
    Rule("cost.total_usd", "sum of the bill of the run (lifecycle: of training and all months)",
         ("cost.breakdown", "training.gpu_hours", *_RENT), "money.md#the-bill"),
    Rule("cost.breakdown.*", "quantity used x its price, to the cent",
         (*_RENT, "training.gpu_hours", "@money.storage*", "@money.people*", "@money.egress*"), "money.md#the-bill"),
    Rule("cost.idle_usd", "compute of the bill x share of the time without work",
         ("cost.breakdown.gpus", "serving.utilization_frac", "training.goodput_frac"), "money.md#the-bill"),
    Rule("cost.not_counted*", "purposes for which the scenario states no money", ("@money.*_usd_per_month",),
         "money.md#the-bill"),
    Rule("budget.limit_usd", "the limit of the scenario", ("@money.budget.*",), "money.md#budget"),
    Rule("budget.used_usd", "cost on the basis of the budget", ("cost.usd_per_month", "cost.total_usd"),
         "money.md#budget"),
    Rule("budget.headroom_usd", "limit - used", ("budget.limit_usd", "budget.used_usd"), "money.md#budget"),
    Rule("budget.buys.*", "the most of it for which the bill stays inside the limit", ("budget.limit_usd", *_RENT),
         "money.md#budget"),
    Rule("budget.*", "the spending judged against the limit", ("budget.limit_usd", "budget.used_usd"),
         "money.md#budget"),
    Rule("energy.usd", "energy x price of electricity where it is not in the rent", ("energy.kwh", "@money.ownership*"),
         "energy.md"),
    Rule("energy.power_w_per_gpu", "idle power + use of arithmetic and bandwidth x (limit - idle), host and cooling on "
         "top",
         ("%power.*", "@facility.pue", "serving.utilization_frac", "training.mfu_frac"), "energy.md"),
    Rule("energy.kwh", "power x GPUs x time", ("energy.power_w_per_gpu", "@serving.layout.*", "training.gpu_hours"),
         "energy.md"),
    Rule("energy.*kgco2e*", "energy x carbon intensity of the grid", ("energy.kwh", "@facility.kgco2e_per_j"),
         "energy.md"),
    Rule("energy.*", "energy at the meter over its basis", ("energy.kwh", "@facility.*"), "energy.md"),
    Rule("alternatives.utilization_frac", "requests asked for / most that could be served",
         ("alternatives.requests_per_month", "serving.capacity_requests_per_s"), "money.md#rent-buy-or-api"),
    Rule("alternatives.options*", "the same demand priced this way: own ways with as many replicas as it needs, hosted "
         "ones per token", ("alternatives.requests_per_month", "alternatives.output_tokens_per_month",
                            "@market.cached_frac", "@market.batch_frac", *_RENT), "money.md#rent-buy-or-api"),
    Rule("alternatives.*_per_month", "what is asked for in a month",
         (_TRAFFIC, "@money.hours_per_month", "serving.requests_per_s"), "money.md#rent-buy-or-api"),
    Rule("alternatives*", "the same demand rented, owned and hosted",
         ("alternatives.requests_per_month", "cost.usd_per_month"), "money.md#rent-buy-or-api"),
    Rule("lifecycle*", "training, then every month in service with the replicas its demand needs",
         ("training.gpu_hours", "serving.capacity_requests_per_s", "@lifecycle_months", "@demand.*", *_RENT),
         "money.md#lifecycle"),
    Rule("advice*", "the least loss of a published scaling law for the same money; advice, no promise",
         ("@scaling_laws*", "@training.work.n_tokens", "cost.total_usd"), "scaling-laws.md"),
    Rule("provenance.origins*", "where a value of the scenario was set", (), "../reference/scenario.md"),
    Rule("provenance.traffic*", "mean over the requests that were simulated", (_TRAFFIC,), "traffic.md#lengths"),
    Rule("provenance.price*", "the price used, as listed on its date", ("@money.offer.*", "@as_of"),
         "money.md#the-bill"),
    Rule("provenance*", "what the plan was made from", ("@model.name", "@hardware.slug"), "data-card.md"),
)  # fmt: skip


def rule_of(path: str) -> Rule | None:
    """The row for a path of the plan."""
    return next((rule for rule in RULES if fnmatchcase(path, rule.pattern)), None)
