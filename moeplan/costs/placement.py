"""Which GPU holds which expert: contiguous, round-robin, and balanced by load with redundant copies.

The balanced placements follow the scheme DeepSeek published as EPLB (github.com/deepseek-ai/EPLB, README): extra slots
go one by one to the expert with the largest load per copy; copies go, largest first, to the GPU with the least load
that has a free slot. Hierarchical: groups of experts are first dealt to nodes in the same way, so that a token limited
to few groups visits few nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeplan.spec.routing import Placement

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """A placement as the routing kernel reads it: slots sorted by the expert they hold."""

    order: Ints  # (n_slots,) index of each in the placement, row by row
    first: Ints  # (n_experts + 1,) where the slots of each expert begin
    rank: Ints  # (n_slots,) GPU of each
    shape: tuple[int, int]  # of the placement: GPUs, slots of one

    @staticmethod
    def of(placed: Ints, n_experts: int) -> Slots:
        """``placed`` (n_ranks, slots per rank): expert held by each slot."""
        flat = placed.ravel()
        order = np.argsort(flat, kind="stable")
        first = np.searchsorted(flat[order], np.arange(n_experts + 1)).astype(np.int64)
        return Slots(order, first, order // placed.shape[1], (placed.shape[0], placed.shape[1]))


def place(
    kind: Placement, load: Array, n_ranks: int, *, n_redundant: int = 0, n_nodes: int = 1, n_group: int = 1
) -> Ints:
    """Expert held by each slot, shape (n_ranks, slots per rank).

    ``load`` (n_experts,): expected load of each expert, any scale; contiguous and round-robin ignore it.

    Hierarchical is greedy where ranks, slots or groups do not divide over the nodes.

    Raises ValueError when the slots do not divide evenly over the ranks.
    """
    n_experts = load.size
    n_slots = n_experts + n_redundant
    if n_slots % n_ranks:
        raise ValueError(f"{n_slots} slots do not divide over {n_ranks} GPUs")
    if kind == "contiguous":
        return np.arange(n_slots).reshape(n_ranks, -1) % n_experts
    if kind == "round_robin":
        return np.ascontiguousarray(np.arange(n_slots).reshape(-1, n_ranks).T) % n_experts
    groups = n_group if n_group % n_nodes == 0 and n_group > 1 else n_experts
    uneven = n_ranks % n_nodes or n_slots % n_nodes or groups % n_nodes
    if kind == "greedy" or n_nodes == 1 or uneven:
        return _balanced(np.arange(n_experts), load, n_ranks, n_slots)
    members = np.arange(n_experts).reshape(groups, -1)
    node_of = packed(load[members].sum(axis=1), n_nodes)
    per_node = [members[node_of == node].ravel() for node in range(n_nodes)]
    placed = [_balanced(experts, load[experts], n_ranks // n_nodes, n_slots // n_nodes) for experts in per_node]
    return np.concatenate(placed)


def packed(load: Array, n_packs: int) -> Ints:
    """Pack of each item, shape (n_items,): as many items in every pack, largest first into the lightest with room."""
    room = load.size // n_packs
    pack_of = np.empty(load.size, np.int64)
    total, n_held = np.zeros(n_packs), np.zeros(n_packs, np.int64)
    for item in np.argsort(-load, kind="stable"):
        pack = int(np.argmin(np.where(n_held < room, total, np.inf)))
        pack_of[item] = pack
        total[pack] += load[item]
        n_held[pack] += 1
    return pack_of


def copies_of(load: Array, n_slots: int) -> Ints:
    """Copies of each expert, shape (n_experts,): every slot beyond one each goes to the largest load per copy."""
    copies = np.ones(load.size, np.int64)
    for _ in range(n_slots - load.size):
        copies[int(np.argmax(load / copies))] += 1
    return copies


def _balanced(experts: Ints, load: Array, n_ranks: int, n_slots: int) -> Ints:
    copies = copies_of(load, n_slots)
    of_slot = np.repeat(np.arange(load.size), copies)
    rank_of = packed((load / copies)[of_slot], n_ranks)
    return np.stack([experts[of_slot[rank_of == rank]] for rank in range(n_ranks)])


def slot_share(placed: Ints, load: Array) -> Array:
    """Load of each slot when copies share their expert's evenly, shape (n_ranks, slots per rank).

    Raises ValueError when an expert with load has no slot.
    """
    copies = np.bincount(placed.ravel(), minlength=load.size)
    homeless = np.flatnonzero((copies == 0) & (load > 0.0))
    if homeless.size:
        raise ValueError(f"expert {int(homeless[0])} is placed nowhere")
    return np.asarray((load / np.maximum(copies, 1))[placed])
