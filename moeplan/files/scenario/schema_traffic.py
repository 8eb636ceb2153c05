"""The `serving.traffic` and `serving.slo` sections of a scenario file: what is asked, and how fast."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from moeplan.files.scenario.schema_types import (
    Count,
    CountOrZero,
    Duration,
    DurationOrZero,
    Flag,
    Fraction,
    Rate,
    Section,
    Text,
    Tokens,
    choice,
    one_of,
    quantity,
    reject,
    whole,
)
from moeplan.files.scenario.trace import FORMATS

MOST_CLASSES = 20
MOST_STEPS = 1000


class SloFile(Section):
    """Latency targets at a percentile of the requests."""

    ttft: Duration | None = Field(default=None, description="Time to first token.")
    tpot: Duration | None = Field(default=None, description="Time per output token after the first.")
    e2e: Duration | None = Field(default=None, description="Whole request.")
    percentile: Annotated[float, quantity("count", above=0.0, most=99.9)] = Field(
        default=90.0, description="Percentile the targets hold at."
    )


class UniformFile(Section):
    """Whole numbers, each equally likely."""

    low: Tokens = Field(description="Smallest length [tokens].")
    high: Tokens = Field(description="Largest length [tokens].")

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        return {"low": value[0], "high": value[1]} if isinstance(value, list) and len(value) == 2 else value

    @model_validator(mode="after")
    def _ordered(self) -> UniformFile:
        if self.low > self.high:
            raise reject("low is above high", hint="write the smaller number first")
        return self


class LognormalFile(Section):
    """Log-normal lengths, the usual shape of chat prompts and answers."""

    mean: Tokens = Field(description="Mean length before clipping [tokens].")
    sigma: Annotated[float, quantity("count", above=0.0, most=5.0)] = Field(
        description="Standard deviation of ln(length)."
    )
    min: Tokens = Field(default=1, description="Shorter draws are raised to this [tokens].")
    max: Tokens | None = Field(
        default=None, description="Longer draws are cut to this [tokens]; default: half of the longest request allowed."
    )

    @model_validator(mode="after")
    def _ordered(self) -> LognormalFile:
        if self.max is not None and self.min > self.max:
            raise reject("min is above max")
        return self


class EmpiricalFile(Section):
    """Lengths that were seen: a list, or a CSV file with the columns `tokens` and, where they differ, `count`."""

    shorthand = "file"
    exclusive = ("file", "values")
    file: Text | None = Field(default=None, description="Path of the CSV file, in the scenario's folder.")
    values: list[Tokens] | None = Field(
        default=None, min_length=1, max_length=10_000, description="Lengths, each equally likely [tokens]."
    )

    @classmethod
    def expand(cls, value: Any) -> Any:
        """A list stands for ``values``."""
        return {"values": value} if isinstance(value, list) else super().expand(value)

    @model_validator(mode="after")
    def _one(self) -> EmpiricalFile:
        one_of(self, *self.exclusive)
        return self


class LengthFile(Section):
    """How long prompts or answers are: a number, or a distribution."""

    shorthand = "fixed"
    exclusive = ("fixed", "uniform", "lognormal", "empirical")
    fixed: Tokens | None = Field(default=None, description="Every one has this length [tokens].")
    uniform: UniformFile | None = Field(default=None, description="[low, high], each length equally likely.")
    lognormal: LognormalFile | None = Field(default=None, description="Log-normal with mean and sigma.")
    empirical: EmpiricalFile | None = Field(default=None, description="Lengths that were seen.")

    @model_validator(mode="after")
    def _one(self) -> LengthFile:
        one_of(self, *self.exclusive)
        return self


class TraceFile(Section):
    """Recorded requests: arrival times, lengths, and where known the text prompts share; plain or .gz."""

    shorthand = "file"
    file: Text = Field(description="Path relative to the file that names it; must lie in the scenario's folder.")
    format: Annotated[str, choice(*FORMATS)] = Field(
        default="auto",
        description="`azure`: TIMESTAMP,ContextTokens,GeneratedTokens; `burstgpt`: Timestamp,Request tokens,Response "
        "tokens; `mooncake`: JSON lines with timestamp (ms), input_length, output_length, hash_ids; `csv`: "
        "arrival_s,input_tokens,output_tokens and perhaps class; `auto`: told by the content.",
    )
    attribution: Text | None = Field(default=None, description="Whom to credit for the data.")


class RateStepFile(Section):
    """A stretch of time with one mean rate."""

    duration: Duration = Field(description="How long.")
    rate: Annotated[float, quantity("request_rate", least=0.0)] = Field(description="Mean arrivals; may be 0 req/s.")

    @model_validator(mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        return {"duration": value[0], "rate": value[1]} if isinstance(value, list) and len(value) == 2 else value


class DiurnalFile(Section):
    """A day's tide: rate x (1 + amplitude x cos(2 pi (time - peak) / period))."""

    shorthand = "amplitude"
    amplitude: Fraction = Field(description="How far the rate swings around its mean.")
    period: Duration = Field(default=86400.0, description="Length of a cycle [s]; default: a day.")
    peak: DurationOrZero = Field(default=50400.0, description="Time of the highest rate [s]; default: 14 h.")


class ConversationFile(Section):
    """Requests that continue each other: each prompt holds the shared prefix and everything said before.

    `input_tokens` are then what a turn adds. A turn follows the answer before it; `rate` counts requests, all turns.
    """

    shorthand = "turns"
    turns: LengthFile = Field(
        default=LengthFile(fixed=1), description="Requests of a conversation: a number, or a distribution."
    )
    think_time: DurationOrZero = Field(
        default=0.0, description="Mean pause between an answer and the next turn (exponential)."
    )
    shared_prefix: CountOrZero = Field(
        default=0, description="Tokens of a system prompt in front of every first turn, on top of `input_tokens`."
    )
    prefixes: Count = Field(default=1, description="Different system prompts, equally frequent.")


class RequestClassFile(Section):
    """A kind of request: its share of the traffic, its lengths, its targets."""

    name: Text = Field(description="Name in the plan.")
    share: Annotated[float, quantity("fraction", least=0.0)] | None = Field(
        default=None, description="Weight among the classes; unused where a trace has a `class` column."
    )
    input_tokens: LengthFile | None = Field(default=None, description="Default: as `traffic.input_tokens`.")
    output_tokens: LengthFile | None = Field(default=None, description="Default: as `traffic.output_tokens`.")
    slo: SloFile | None = Field(default=None, description="Its own targets; default: as `serving.slo`.")
    priority: Annotated[int, whole(0, 1000)] = Field(
        default=0, description="The smaller goes first, under engines that know priorities."
    )
    timeout: Duration | None = Field(default=None, description="Default: as `traffic.timeout`.")


class TrafficFile(Section):
    """The requests: recorded (`trace`), or drawn (token lengths with `rate`, `rates`, `users` or `offline`)."""

    exclusive = ("rate", "rates", "users", "offline")
    trace: TraceFile | None = Field(default=None, description="Recorded requests.")
    rate: Rate | None = Field(
        default=None,
        description="Mean arrivals at the whole deployment: Poisson, or the trace stretched to this rate.",
    )
    rates: list[RateStepFile] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_STEPS,
        description="The rate over time, `[[10 min, 2 req/s], [5 min, 8 req/s]]`, again from the start after the last.",
    )
    diurnal: DiurnalFile | None = Field(default=None, description="`rate` is the mean of a cycle of this shape.")
    burstiness: Annotated[float, quantity("count", least=0.0, most=100.0)] | None = Field(
        default=None,
        description="Standard deviation of the gaps between arrivals over their mean (gamma): 1 is Poisson, the "
        "default, 0 even, above 1 bursty.",
    )
    users: Count | None = Field(
        default=None, description="Closed loop: this many users, each sends its next request when the last one ended."
    )
    think_time: DurationOrZero | None = Field(
        default=None, description="Closed loop: mean pause of a user before its next request (exponential)."
    )
    offline: Flag = Field(default=False, description="All requests are there at time zero (batch work).")
    requests: Count | None = Field(
        default=None,
        description="Requests simulated. Default: the whole trace; one cycle of `rates` or `diurnal`; 2000 or two "
        "minutes of a steady stream, up to 500000; 12 per user of a closed loop; 1000 offline.",
    )
    warmup_requests: CountOrZero | None = Field(
        default=None,
        description="First requests left out of the percentiles. Default: a tenth of a steady stream, 2 per user of a "
        "closed loop, otherwise none.",
    )
    input_tokens: LengthFile | None = Field(
        default=None, description="Prompt lengths (with a trace: instead of its own)."
    )
    output_tokens: LengthFile | None = Field(
        default=None, description="Answer lengths (with a trace: instead of its own)."
    )
    conversation: ConversationFile | None = Field(default=None, description="Requests that continue each other.")
    timeout: Duration | None = Field(
        default=None, description="A user gives up a request that has no answer by then; default: never."
    )
    classes: list[RequestClassFile] | None = Field(
        default=None, min_length=1, max_length=MOST_CLASSES, description="Kinds of requests, mixed at random."
    )

    @model_validator(mode="after")
    def _complete(self) -> TrafficFile:
        loads = {"rate": self.rate, "rates": self.rates, "users": self.users, "offline": self.offline or None}
        given = [name for name, value in loads.items() if value is not None]
        if len(given) > 1:
            raise reject(f"only one load may be stated: {', '.join(given)}", "rate, rates, users, offline: true")
        if self.think_time is not None and self.users is None:
            raise reject("`think_time` belongs to a closed loop", "state `users`")
        if self.diurnal is not None and self.rate is None:
            raise reject("`diurnal` is the shape of a mean rate", "state `rate`")
        if self.trace is not None:
            self._check_trace()
        else:
            self._check_drawn(given)
        names = [c.name for c in self.classes or ()]
        if len(set(names)) < len(names):
            raise reject("two classes of one name")
        return self

    def _check_trace(self) -> None:
        for key in ("rates", "diurnal", "burstiness", "conversation"):
            if getattr(self, key) is not None:
                raise reject(f"a trace has its own times and prompts: `{key}` does not go with it", "rate, offline")

    def _check_drawn(self, given: list[str]) -> None:
        if self.burstiness is not None and not {"rate", "rates"} & set(given):
            raise reject("`burstiness` belongs to open arrivals", "state `rate` or `rates`")
        if self.rates is not None and not any(step.rate > 0.0 for step in self.rates):
            raise reject("`rates` has no request at all", "at least one rate above 0 req/s")
        missing = [
            key
            for key in ("input_tokens", "output_tokens")
            if getattr(self, key) is None and not (self.classes and all(getattr(c, key) for c in self.classes))
        ]
        if missing:
            raise reject(f"missing {' and '.join(missing)}", hint="state them, or give a `trace`")
        if self.classes is not None and not any((c.share or 0.0) > 0.0 for c in self.classes):
            raise reject("no class has a share", "share: 30 %")
        if not given:
            raise reject("no load is stated", "rate, rates, users, offline: true, or trace")
