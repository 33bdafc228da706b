"""Conversations of a trace, hours made of them, and the same hour with less to reuse.

Input: a trace. Output: the conversation of each row; traces in which as many conversations, drawn
with replacement, begin at other times; the trace in which only some conversations reuse anything.

**Which rows are one conversation.** A prompt goes on the conversation that first had the last of
its blocks that is known already; without one it begins a conversation. Blocks that more than
`COMMON_SHARE` of all prompts have are a preamble, such as a system prompt, and link nothing. In the
conversation trace of Mooncake FAST25 one block is in every prompt and no other in more than 43 of
12,031, so that any share from 0.5 % to 50 % finds the same 7,373 conversations.

**A made hour.** Each drawn conversation begins at a random tick of the trace's clock and keeps the
gaps between its turns. Turns beyond the end come at the beginning: the hour is a circle, as in the
circular bootstrap [1]_. So every hour brings whole conversations at an even rate. Cutting them off
instead loses 5 % of the requests of that trace, and drawing only beginnings that leave room for the
last turn leaves a quarter fewer tokens at both ends of the hour.

References
----------
.. [1] D. N. Politis and J. P. Romano, A circular block-resampling procedure for stationary data,
   in R. LePage and L. Billard (eds.), Exploring the Limits of Bootstrap, Wiley (1992).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvab.declarations import digest
from kvab.errors import InputError
from kvab.trace.reading import Trace

COMMON_SHARE = 0.1
REUSE_SEED = 20261128  # of which conversations keep what they reuse


@dataclass(frozen=True)
class Conversations:
    """The conversations of a trace.

    Attributes
    ----------
    trace : Trace
        The workload.
    rows : list of ndarray of int
        Rows of each conversation, in the trace's order.
    shared : frozenset of int
        Blocks that several conversations have.
    """

    trace: Trace
    rows: list[np.ndarray]
    shared: frozenset[int]


def find_conversations(trace: Trace) -> Conversations:
    """Return the conversations of a trace, by the rule that the module describes.

    Raises
    ------
    InputError
        If there is one alone, or none of more than one request.
    """
    rows, shared = _grouped(trace)
    if len(rows) < 2 or len(rows) == len(trace):
        expected = "two conversations or more, one of them of several requests"
        got = f"{len(rows)} in {len(trace)} requests"
        fix = "replay more rows, or a trace whose prompts share their beginnings"
        raise InputError(expected=expected, got=got, path=trace.path, fix=fix)
    return Conversations(trace, [np.array(each) for each in rows], frozenset(shared))


def _grouped(trace: Trace) -> tuple[list[list[int]], set[int]]:
    """Return the rows of each conversation, and the blocks that several have."""
    prompts = Counter(block for ids in trace.hash_ids for block in set(ids))
    shared = {block for block, count in prompts.items() if count > COMMON_SHARE * len(trace)}
    first: dict[int, int] = {}  # conversation that had a block first
    rows: list[list[int]] = []
    for row, ids in enumerate(trace.hash_ids):
        own = [block for block in ids if block not in shared]
        conversation = next((first[block] for block in reversed(own) if block in first), len(rows))
        if conversation == len(rows):
            rows.append([])
        rows[conversation].append(row)
        for block in own:
            if first.setdefault(block, conversation) != conversation:
                shared.add(block)
    return rows, shared


def with_reuse(trace: Trace, share: float) -> Trace:
    """Return the trace in which a share of the conversations keep their blocks, 0 to 1.

    No block of the other conversations is in any other prompt, not even the preamble, so that a
    cache serves nothing of them. Which they are is drawn once: who keeps them at a share keeps
    them at a larger one. Lengths, arrivals, name and sha256 stay.
    """
    rows, _ = _grouped(trace)
    order = np.random.default_rng(REUSE_SEED).permutation(len(rows))
    others = {row for number in order[round(share * len(rows)) :] for row in rows[number]}
    free = 1 + max((block for ids in trace.hash_ids for block in ids), default=-1)
    own = itertools.count(free)
    hash_ids = tuple(
        tuple(itertools.islice(own, len(ids))) if row in others else ids
        for row, ids in enumerate(trace.hash_ids)
    )
    return replace(trace, hash_ids=hash_ids)


def made_hour(conversations: Conversations, seed: int | Sequence[int]) -> Trace:
    """Return a trace of as many conversations, drawn with replacement, at other times.

    Parameters
    ----------
    conversations : Conversations
        What is drawn from.
    seed : int or sequence of int
        Equal seeds give equal hours.

    Returns
    -------
    Trace
        Rows by time, those of one tick in random order; its sha256 is that of its content. Copies
        share the blocks that different conversations share; their other blocks are their own.
    """
    trace, count = conversations.trace, len(conversations.rows)
    rng = np.random.default_rng(seed)
    drawn = [conversations.rows[each] for each in rng.integers(count, size=count)]
    rows, copy = np.concatenate(drawn), np.repeat(np.arange(count), [*map(len, drawn)])
    clock = np.unique(trace.timestamp_ms)
    moved_ms = rng.choice(clock, count) - trace.timestamp_ms[[each[0] for each in drawn]]
    tick = _nearest_tick(trace.timestamp_ms[rows] + moved_ms[copy], clock)
    order = np.argsort(tick, kind="stable")
    at_ms, made = clock[tick[order]], trace.take(rows[order])
    hash_ids = _relabelled(made.hash_ids, copy[order], conversations.shared)
    content = [of.tolist() for of in (at_ms, made.input_tokens, made.output_tokens)]
    sha256 = digest([*content, hash_ids])
    return replace(made, sha256=sha256, timestamp_ms=at_ms, hash_ids=hash_ids)


def _nearest_tick(at_ms: np.ndarray, clock: np.ndarray) -> np.ndarray:
    """Return the index of the nearest tick, on a clock that begins anew one tick after its last."""
    period_ms = clock[-1] - clock[0] + np.diff(clock).min(initial=np.inf)
    following = np.append(clock[1:], clock[0] + period_ms)
    within_ms = clock[0] + (at_ms - clock[0]) % period_ms
    return np.searchsorted((clock + following) / 2, within_ms) % len(clock)


def _relabelled(
    hash_ids: tuple[tuple[int, ...], ...], copy: np.ndarray, shared: frozenset[int]
) -> tuple[tuple[int, ...], ...]:
    """Return the blocks of rows; those that are not shared get ids of their copy."""
    ids, free = dict[tuple[int, int], int](), 1 + max(shared, default=-1)

    def relabel(copy: int, block: int) -> int:
        return block if block in shared else ids.setdefault((copy, block), free + len(ids))

    return tuple(
        tuple(relabel(number, block) for block in row)
        for row, number in zip(hash_ids, copy.tolist(), strict=True)
    )
