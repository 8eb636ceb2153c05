"""Hardware profiles, shipped by name or the user's own by path: ``extends`` followed, SI units, sources kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ValidationError

from moeplan.errors import InputError, Problem, did_you_mean, input_error
from moeplan.files.catalog.fitted import efficiency_of, fabric_parameters
from moeplan.files.catalog.hardware_schema import DIMENSIONS, DenseRates, LinkFile, Profile, Record
from moeplan.files.catalog.training_fits import training_parameters
from moeplan.files.locate import data_folder, is_path, resolve_path
from moeplan.files.validate import problems_of
from moeplan.files.yaml_tree import Node, load_yaml
from moeplan.provenance import Sourced
from moeplan.spec.hardware import Device, Efficiency, Hardware, Host, Link, OpParameters
from moeplan.spec.precision import ComputeType
from moeplan.units import Dimension

# A network has no domain of its own: as many GPUs as the scenario asks for reach each other.
_UNBOUNDED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Stated:
    """A value as the file states it and in SI units with its source."""

    text: str
    sourced: Sourced


@dataclass(frozen=True, slots=True)
class HardwareRecord:
    """Everything a profile says, for ``catalog`` and ``explain``.

    ``values`` is keyed by place ("memory.bandwidth", "dense_rates.bf16"). ``chain`` holds the profile and what it
    extends; its last name is the device's slug, under which fits and prices are found.
    """

    name: str
    device: str
    chain: tuple[str, ...]
    title: str
    vendor: str
    architecture: str
    values: Mapping[str, Stated]
    texts: Mapping[str, str]
    disagreements: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Loaded:
    name: str
    files: tuple[Path, ...]  # the profile's own file first, then what it extends
    node: Node
    profile: Profile


def hardware_names() -> tuple[str, ...]:
    """Names of the shipped profiles, sorted."""
    return tuple(sorted(path.parent.name for path in data_folder("hardware_profiles").glob("*/profile.yaml")))


def hardware_of_gpu(product_name: str) -> str | None:
    """The shipped profile of the device that the driver calls ``product_name``; None where no profile states it."""
    wanted = product_name.casefold()
    loaded = [_shipped(name) for name in hardware_names()]
    found = [one for one in loaded if wanted in (name.casefold() for name in one.profile.product_names)]
    # nodes and boxes extend the device's own profile, and inherit its names
    return min(found, key=lambda one: len(one.files)).name if found else None


def load_hardware(name_or_path: str, base_dir: str | Path | None = None, *, fits: bool = True) -> Hardware:
    """Hardware of a shipped name or of a profile file, in SI units; without ``fits`` its efficiency is left empty.

    ``base_dir`` is the folder of the scenario that names a path; the path must stay inside it. Without it, paths are
    seen from the current folder. Raises InputError with every problem of the file.
    """
    loaded = _load(name_or_path, base_dir)
    return _hardware(loaded, fits)


def hardware_record(name_or_path: str, base_dir: str | Path | None = None) -> HardwareRecord:
    """All values of a profile as stated, with their sources. Raises InputError as ``load_hardware``."""
    loaded = _load(name_or_path, base_dir)
    profile = loaded.profile
    texts = {"form": profile.form, "released": profile.released, "unified_memory": str(profile.unified_memory).lower()}
    for place in ("pcie", "scale_up", "scale_out"):
        link = cast(LinkFile | None, getattr(profile, place))
        if link is not None:
            texts[place] = f"{link.name} ({link.kind})"
    return HardwareRecord(
        name=loaded.name,
        device=_slug(loaded.files[-1]),
        chain=tuple(_slug(path) for path in loaded.files),
        title=profile.name,
        vendor=profile.vendor,
        architecture=profile.architecture,
        values={place: Stated(str(r.value), r.sourced(dim)) for place, r, dim in _records(profile)},
        texts=texts,
        disagreements=tuple(profile.disagreements),
        notes=tuple(profile.notes),
    )


def _load(name_or_path: str, base_dir: str | Path | None) -> _Loaded:
    if name_or_path.casefold() in hardware_names():
        return _shipped(name_or_path.casefold())
    if is_path(name_or_path):
        root = None if base_dir is None else Path(base_dir)
        return _read(_profile_path(name_or_path, root), root)
    raise _unknown(name_or_path)


@cache
def _shipped(name: str) -> _Loaded:
    return _read(_shipped_path(name), root=None)


def _shipped_path(name: str) -> Path:
    return data_folder("hardware_profiles") / name / "profile.yaml"


def _unknown(name: str) -> InputError:
    hint = did_you_mean(name, hardware_names()) or "moeplan catalog hardware lists all names"
    allowed = "a catalog name or the path of a profile.yaml"
    return input_error("hardware", "unknown hardware", got=name, allowed=allowed, hint=hint)


def _profile_path(text: str, base_dir: Path | None) -> Path:
    path = resolve_path(text, base_dir, "hardware profile")
    return path / "profile.yaml" if path.is_dir() else path


def _slug(path: Path) -> str:
    return path.parent.name if path.name == "profile.yaml" else path.stem


def _read(path: Path, root: Path | None) -> _Loaded:
    node, files = _merged(path, root, ())
    try:
        profile = Profile.model_validate(node.plain())
    except ValidationError as error:
        raise InputError(problems_of(error, node, Profile)) from None
    problems = _missing_links(profile, node)
    if problems:
        raise InputError(problems)
    return _Loaded(_slug(path), files, node, profile)


def _merged(path: Path, root: Path | None, below: tuple[Path, ...]) -> tuple[Node, tuple[Path, ...]]:
    """Tree of a profile with everything it extends filled in, and the files read."""
    if path in below:
        circle = " -> ".join(_slug(p) for p in (*below, path))
        raise input_error(below[0], "extends runs in a circle", got=circle)
    node = load_yaml(path, what="hardware profile")
    tree = cast(dict[str, Node], node.value)
    base_name = tree.pop("extends", None)
    files = (*below, path)
    if base_name is None:
        return node, files
    text = base_name.value
    if not isinstance(text, str):
        raise InputError([_at(base_name, "extends", "expected a catalog name or a path")])
    if text in hardware_names():
        base_path, base_root = _shipped_path(text), None
    elif is_path(text):
        if not (path.parent / text).exists():
            raise InputError([_at(base_name, "extends", "no such hardware profile", text)])
        base_path, base_root = _profile_path(str(path.parent / text), root), root
    else:
        raise InputError(
            [_at(base_name, "extends", "unknown hardware", text, hint=did_you_mean(text, hardware_names()))]
        )
    base, files = _merged(base_path.resolve(), base_root, files)
    return _overlay(base, node), files


def _at(node: Node, path: str, what: str, got: str = "", hint: str = "") -> Problem:
    return Problem(node.mark.file, node.mark.line, node.mark.col, path, what, got, hint=hint)


def _overlay(base: Node, top: Node) -> Node:
    """``base`` with the keys of ``top`` on it; null takes a key away.

    A record (it has a ``value``) is replaced whole, so that no old source stays with a new number.
    """
    if not isinstance(base.value, dict) or not isinstance(top.value, dict) or "value" in top.value:
        return top
    merged = dict(base.value)
    for key, node in top.value.items():
        if node.value is None:
            merged.pop(key, None)
        else:
            merged[key] = _overlay(merged[key], node) if key in merged else node
    return Node(merged, top.mark, {**base.keys, **top.keys}, base.size + top.size)


def _missing_links(profile: Profile, node: Node) -> list[Problem]:
    n_gpus = profile.node.n_gpus.si("count")
    if n_gpus > 1 and profile.scale_up is None and profile.pcie is None:
        mark = node.mark
        what = "a node of several GPUs needs a link between them"
        return [Problem(mark.file, mark.line, mark.col, "scale_up", what, allowed="scale_up or pcie")]
    return []


def _records(profile: Profile) -> list[tuple[str, Record, Dimension]]:
    """Every record of a profile with its place and dimension, in the order of the file format."""
    found: list[tuple[str, Record, Dimension]] = []

    def walk(model: BaseModel, place: str) -> None:
        for key in type(model).model_fields:
            value = getattr(model, key)
            below = f"{place}.{key}" if place else key
            if isinstance(value, Record):
                found.append((below, value, DIMENSIONS["dense_rates" if place == "dense_rates" else below]))
            elif isinstance(value, BaseModel):
                walk(value, below)

    walk(profile, "")
    return found


def _hardware(loaded: _Loaded, fits: bool) -> Hardware:
    profile = loaded.profile
    si = {place: record.si(dimension) for place, record, dimension in _records(profile)}
    memory_bytes_per_s = si["memory.bandwidth"]
    n_gpus_per_node = int(si["node.n_gpus"])
    tdp_w = si.get("tdp")
    server_w = si.get("node.server_power")
    device = Device(
        slug=_slug(loaded.files[-1]),
        name=profile.name,
        vendor=profile.vendor,
        architecture=profile.architecture,
        memory_bytes=si.get("memory.usable", si["memory.capacity"]),
        memory_bytes_per_s=memory_bytes_per_s,
        dense_flop_per_s={
            cast(ComputeType, key): si[f"dense_rates.{key}"]
            for key in DenseRates.model_fields
            if f"dense_rates.{key}" in si
        },
        n_sms=int(si["n_sms"]) if "n_sms" in si else None,
        l2_bytes=si.get("memory.l2"),
        tdp_w=tdp_w,
        unified_memory=profile.unified_memory,
    )
    pcie = _link(profile.pcie, si, "pcie", n_gpus_per_node)
    # Without a link of their own the GPUs of a node talk over PCIe; one GPU alone talks to nobody but its memory.
    scale_up = (
        _link(profile.scale_up, si, "scale_up", int(si.get("scale_up.n_gpus", 1)))
        or pcie
        or Link("none", memory_bytes_per_s, 0.0, 1, "none")
    )
    efficiency: dict[tuple[str, str, str], OpParameters] = {}
    if fits:
        folders = (path.parent for path in loaded.files if path.name == "profile.yaml")
        efficiency.update(efficiency_of(folders, device, _shipped_device).parameters)
        efficiency.update(training_parameters(device.slug, device.architecture))
        efficiency.update(fabric_parameters())
    return Hardware(
        slug=loaded.name,
        device=device,
        n_gpus_per_node=n_gpus_per_node,
        n_gpus_scale_up=scale_up.n_gpus,
        scale_up=scale_up,
        scale_out=_link(profile.scale_out, si, "scale_out", _UNBOUNDED),
        host=Host(
            memory_bytes=si.get("node.host_memory"),
            memory_bytes_per_s=si.get("node.host_memory_bandwidth"),
            power_w=None if server_w is None or tdp_w is None else max(server_w - n_gpus_per_node * tdp_w, 0.0),
            pcie=pcie,
        ),
        allin_power_w_per_gpu=si.get("node.allin_power_per_gpu"),
        efficiency=Efficiency(efficiency),
    )


@cache
def _shipped_device(name: str) -> Device:
    return _hardware(_shipped(name), fits=False).device


def _link(link: LinkFile | None, si: Mapping[str, float], place: str, n_gpus: int) -> Link | None:
    if link is None:
        return None
    return Link(link.name, si[f"{place}.bandwidth"], si[f"{place}.latency"], n_gpus, link.kind)
