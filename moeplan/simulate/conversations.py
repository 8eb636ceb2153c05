"""Requests that continue each other, and what their prompts have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moeplan.spec.workload import Conversations

Ints = npt.NDArray[np.int64]

BLOCK_TOKENS = 64  # granularity at which drawn conversations share text: a compromise between memory and truth


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Blocks of ``block_tokens`` tokens with equal ids hold equal text after equal text.

    Those of request i are ``id[start[i] : start[i + 1]]``, from its first token on; the first ``n_prompt[i]`` of them
    lie in its prompt, the others in its answer, which a later prompt may repeat.
    """

    block_tokens: int
    start: Ints  # (n_requests + 1,)
    id: Ints
    n_prompt: Ints  # (n_requests,)


@dataclass(frozen=True, slots=True, eq=False)
class Chains:
    """Conversations: the first turns are requests 0 to n_free - 1, then the others. Arrays (n_requests,)."""

    n_free: int
    conversation: Ints
    turn: Ints
    next_turn: Ints
    think_s: float
    prefix_tokens: int
    n_prefixes: int

    @classmethod
    def single(cls, n: int) -> Chains:
        """Requests that have nothing to do with each other."""
        return cls(n, np.arange(n), np.zeros(n, np.int64), np.full(n, -1), 0.0, 0, 1)

    def prompts(self, new_tokens: Ints, output_tokens: Ints) -> Ints:
        """Prompt lengths: the shared prefix, everything said before, and the turn's own tokens."""
        if self.n_free == self.turn.size:
            return new_tokens + self.prefix_tokens
        order = np.lexsort((self.turn, self.conversation))
        said = np.cumsum((new_tokens + output_tokens)[order])
        first = np.flatnonzero(self.turn[order] == 0)
        before = said[first] - (new_tokens + output_tokens)[order[first]]  # said by the conversations ahead
        prompts = np.empty_like(new_tokens)
        prompts[order] = said - output_tokens[order] - before[self.conversation[order]] + self.prefix_tokens
        return prompts

    def blocks(self, input_tokens: Ints, output_tokens: Ints) -> Blocks | None:
        """Common text: of a conversation, and of the first turns that begin with the same prefix."""
        if self.n_free == self.turn.size and self.prefix_tokens == 0:
            return None
        n_prompt = input_tokens // BLOCK_TOKENS
        n_blocks = (input_tokens + output_tokens) // BLOCK_TOKENS
        start = np.concatenate([[0], np.cumsum(n_blocks)])
        position = np.arange(start[-1]) - np.repeat(start[:-1], n_blocks)
        # A text of its own per conversation, numbered after the shared prefixes; positions tell its blocks apart.
        most = int(n_blocks.max(initial=0)) + 1
        own = self.n_prefixes + np.repeat(self.conversation, n_blocks)
        shared = np.repeat(self.conversation % self.n_prefixes, n_blocks)
        text = np.where(position < self.prefix_tokens // BLOCK_TOKENS, shared, own)
        return Blocks(BLOCK_TOKENS, start, text * most + position, n_prompt)


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
    n_free, n = turns.size, int(turns.sum())
    later = turns - 1
    first_later = n_free + np.cumsum(later) - later
    conversation = np.concatenate([np.arange(n_free), np.repeat(np.arange(n_free), later)])
    turn = np.concatenate([np.zeros(n_free, np.int64), np.arange(n_free, n) - np.repeat(first_later, later) + 1])
    after = np.arange(1, n + 1)
    after[:n_free] = first_later
    next_turn = np.where(turn + 1 < turns[conversation], after, -1)
    return Chains(n_free, conversation, turn, next_turn, talk.think_s, talk.prefix_tokens, talk.n_prefixes)


def trace_blocks(start: Ints, ids: Ints, block_tokens: int, n: int) -> Blocks:
    """Blocks of the first ``n`` requests of a trace that repeats; a copy shares nothing with the one before it."""
    size = start.size - 1
    index = np.arange(n)
    counts = np.diff(start)[index % size]
    begin = np.concatenate([[0], np.cumsum(counts)])
    source = np.repeat(start[:-1][index % size], counts) + np.arange(begin[-1]) - np.repeat(begin[:-1], counts)
    copy = np.repeat(index // size, counts)
    return Blocks(block_tokens, begin, ids[source] + copy * (int(ids.max(initial=0)) + 1), counts)
