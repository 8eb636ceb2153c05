"""What a hardware profile file may say. The keys, units and kinds are described in docs/reference/profiles.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from moeplan.provenance import Kind, Source, Sourced
from moeplan.units import Dimension, parse

SI_UNITS: dict[str, str] = {
    "bytes": "B",
    "bytes_per_s": "B/s",
    "memory_bytes_per_s": "B/s",
    "duration": "s",
    "flop_rate": "FLOP/s",
    "power": "W",
    "count": "",
}

ARCHITECTURES = (
    "volta", "ampere", "ada", "hopper", "blackwell", "blackwell-consumer", "cdna2", "cdna3", "cdna4", "rdna35", "xe2",
    "tpu-v5", "tpu-v6", "tpu-v7", "trainium2", "trainium3", "gaudi3", "apple-gpu",
)  # fmt: skip

LINK_KINDS = ("nvlink", "xgmi", "pcie", "ici", "neuronlink", "ethernet", "infiniband", "rdma", "efa")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Record(_Strict):
    """One number with everything needed to trust or replace it."""

    value: str | int | float
    basis: str
    kind: Kind
    source: Annotated[str, Field(min_length=1)]
    date: Annotated[str, Field(pattern=r"^\d{4}(-\d{2}(-\d{2})?)?$")]
    note: str = ""

    @field_validator("date", mode="before")
    @classmethod
    def _year_is_text(cls, value: object) -> object:
        # an unquoted year is a number in YAML
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    def si(self, dimension: Dimension) -> float:
        """The value in SI units. Raises UnitError."""
        return parse(self.value, dimension)

    def sourced(self, dimension: Dimension) -> Sourced:
        """The value in SI units with its citation."""
        source = Source(self.source, self.date, self.kind, self.note)
        return Sourced(self.si(dimension), SI_UNITS[dimension], self.basis, source)


def _positive(dimension: Dimension) -> Callable[[Record], Record]:
    def check(record: Record) -> Record:
        if record.si(dimension) <= 0.0:
            raise ValueError("must be above zero")
        if dimension == "count" and not record.si(dimension).is_integer():
            raise ValueError("must be a whole number")
        return record

    return check


Bytes = Annotated[Record, AfterValidator(_positive("bytes"))]
MemoryRate = Annotated[Record, AfterValidator(_positive("memory_bytes_per_s"))]
LinkRate = Annotated[Record, AfterValidator(_positive("bytes_per_s"))]
Duration = Annotated[Record, AfterValidator(_positive("duration"))]
FlopRate = Annotated[Record, AfterValidator(_positive("flop_rate"))]
Power = Annotated[Record, AfterValidator(_positive("power"))]
Count = Annotated[Record, AfterValidator(_positive("count"))]

# Dimension of every record of a profile by its place; a place of dense_rates is any arithmetic.
DIMENSIONS: dict[str, Dimension] = {
    "memory.capacity": "bytes",
    "memory.usable": "bytes",
    "memory.bandwidth": "memory_bytes_per_s",
    "memory.l2": "bytes",
    "dense_rates": "flop_rate",
    "n_sms": "count",
    "tdp": "power",
    "node.n_gpus": "count",
    "node.host_memory": "bytes",
    "node.host_memory_bandwidth": "memory_bytes_per_s",
    "node.server_power": "power",
    "node.allin_power_per_gpu": "power",
    "pcie.bandwidth": "bytes_per_s",
    "pcie.latency": "duration",
    "scale_up.n_gpus": "count",
    "scale_up.bandwidth": "bytes_per_s",
    "scale_up.latency": "duration",
    "scale_out.bandwidth": "bytes_per_s",
    "scale_out.latency": "duration",
}


class Memory(_Strict):
    capacity: Bytes
    usable: Bytes | None = None
    bandwidth: MemoryRate
    l2: Bytes | None = None


class DenseRates(_Strict):
    fp32: FlopRate | None = None
    tf32: FlopRate | None = None
    bf16: FlopRate | None = None
    fp16: FlopRate | None = None
    fp8: FlopRate | None = None
    int8: FlopRate | None = None
    fp4: FlopRate | None = None


class Node(_Strict):
    n_gpus: Count
    host_memory: Bytes | None = None
    host_memory_bandwidth: MemoryRate | None = None
    server_power: Power | None = None
    allin_power_per_gpu: Power | None = None


class LinkFile(_Strict):
    name: str
    kind: Literal[LINK_KINDS]  # type: ignore[valid-type]
    bandwidth: LinkRate
    latency: Duration


class DomainLink(LinkFile):
    n_gpus: Count


class Profile(_Strict):
    """A hardware profile after ``extends`` has been followed."""

    name: str
    product_names: list[str] = []  # as the driver calls the device
    vendor: str
    architecture: Literal[ARCHITECTURES]  # type: ignore[valid-type]
    form: str = ""
    released: str = ""
    unified_memory: bool = False
    memory: Memory
    dense_rates: DenseRates
    n_sms: Count | None = None
    tdp: Power | None = None
    node: Node
    pcie: LinkFile | None = None
    scale_up: DomainLink | None = None
    scale_out: LinkFile | None = None
    disagreements: list[str] = []
    notes: list[str] = []

    @field_validator("released", mode="before")
    @classmethod
    def _year_is_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
