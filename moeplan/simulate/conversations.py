"""Requests that continue each other, and what their prompts have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeplan.spec.workload import Conversations

Ints = npt.NDArray[np.int64]

UNIT_TOKENS = 64  # granularity at which drawn conversations share text: whole KV blocks of every engine


@dataclass(frozen=True, slots=True, eq=False)
class SharedText:
    """Units of ``unit_tokens`` tokens with equal ids hold equal text after equal text.

    Those of a request, from its first token on, stand one after the other; they may go on into its answer, which a
    later prompt may repeat.
    """

    unit_tokens: int
    n_units: Ints  # (n_requests,)
    id: Ints  # (n_units.sum(),)


@dataclass(frozen=True, slots=True, eq=False)
class Chains:
    """Conversations: the first turns are requests 0 to n_stream - 1, then the others. Arrays (n_requests,)."""

    n_stream: int
    conversation: Ints
    turn: Ints
    successor: Ints
    think_s: float
    prefix_tokens: int
    n_prefixes: int

    @classmethod
    def single(cls, n: int) -> Chains:
        """Requests that have nothing to do with each other."""
        return cls(n, np.arange(n), np.zeros(n, np.int64), np.full(n, -1), 0.0, 0, 1)

    def prompts(self, new_tokens: Ints, output_tokens: Ints) -> Ints:
        """Prompt lengths: the shared prefix, everything said before, and the turn's own tokens."""
        if self.n_stream == self.turn.size:
            return new_tokens + self.prefix_tokens
        order = np.lexsort((self.turn, self.conversation))
        said = np.cumsum((new_tokens + output_tokens)[order])
        first = np.flatnonzero(self.turn[order] == 0)
        before = said[first] - (new_tokens + output_tokens)[order[first]]  # said by the conversations ahead
        prompts = np.empty_like(new_tokens)
        prompts[order] = said - output_tokens[order] - before[self.conversation[order]] + self.prefix_tokens
        return prompts

    def shared(self, input_tokens: Ints, output_tokens: Ints) -> SharedText | None:
        """Common text: of a conversation, and of the first turns that begin with the same prefix."""
        if self.n_stream == self.turn.size and self.prefix_tokens == 0:
            return None
        n_units = (input_tokens + output_tokens) // UNIT_TOKENS
        position = np.arange(n_units.sum()) - np.repeat(np.cumsum(n_units) - n_units, n_units)
        # A text of its own per conversation, numbered after the shared prefixes; positions tell its units apart.
        own = self.n_prefixes + np.repeat(self.conversation, n_units)
        common = np.repeat(self.conversation % self.n_prefixes, n_units)
        text = np.where(position < self.prefix_tokens // UNIT_TOKENS, common, own)
        return SharedText(UNIT_TOKENS, n_units, text * (int(n_units.max(initial=0)) + 1) + position)


def draw_turns(n: int, draw: Callable[[int], Ints]) -> Ints:
    """Turns of conversations that make up ``n`` requests; the last conversation is cut short."""
    turns = np.zeros(0, dtype=np.int64)
    while turns.sum() < n:
        more = draw(max(16, n // 4))
        if np.any(more < 1):
            raise ValueError(f"turns: at least 1 (got {more.min()})")
        turns = np.concatenate([turns, more])
    n_conversations = int(np.searchsorted(np.cumsum(turns), n)) + 1
    turns = turns[:n_conversations].copy()
    turns[-1] -= turns.sum() - n
    return turns


def chains_of(talk: Conversations, turns: Ints) -> Chains:
    """Conversations of ``turns`` (n_conversations,) requests each."""
    if talk.prefix_tokens < 0 or talk.n_prefixes < 1:
        raise ValueError(f"prefix: at least 0 tokens and 1 text (got {talk.prefix_tokens}, {talk.n_prefixes})")
    n_stream, n = turns.size, int(turns.sum())
    later = turns - 1
    first_later = n_stream + np.cumsum(later) - later
    conversation = np.concatenate([np.arange(n_stream), np.repeat(np.arange(n_stream), later)])
    turn = np.concatenate([np.zeros(n_stream, np.int64), np.arange(n_stream, n) - np.repeat(first_later, later) + 1])
    after = np.arange(1, n + 1)
    after[:n_stream] = first_later
    successor = np.where(turn + 1 < turns[conversation], after, -1)
    return Chains(n_stream, conversation, turn, successor, talk.think_s, talk.prefix_tokens, talk.n_prefixes)


def trace_text(start: Ints, ids: Ints, unit_tokens: int, n: int) -> SharedText:
    """Text of the first ``n`` requests of a trace that repeats; a copy shares nothing with the one before it.

    The units of request i of the trace are ``ids[start[i] : start[i + 1]]``.
    """
    size = start.size - 1
    index = np.arange(n)
    counts = np.diff(start)[index % size]
    begin = np.cumsum(counts) - counts
    source = np.repeat(start[:-1][index % size] - begin, counts) + np.arange(counts.sum())
    copy = np.repeat(index // size, counts)
    return SharedText(unit_tokens, counts, ids[source] + copy * (int(ids.max(initial=0)) + 1))
