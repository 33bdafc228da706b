"""A generated trace with the published marginals, for machines that cannot reach the real one.

Input: a number of rows and a seed. Output: JSON lines that `kvab.trace.reading.read_trace` labels
as generated, so that everything built on them says GENERATED WORKLOAD.

Lengths and burst sizes are drawn evenly over the quantiles of the real trace. All prompts share the
first block. A continuing row begins with the whole blocks of an earlier prompt whose answer fits
into it too and that no other row has gone on; where the earlier turn would lie before the trace
begins, the row starts anew. So the first minutes reuse less, as in the real trace (8 % of the block
references of its first 300 rows): a short generated trace is like the beginning of the real one.

Not modelled: the rise from 170 to 220 requests a minute over the hour, the clock's jitter of 3 ms,
the few conversations of 10 to 43 turns (so more blocks than in the real trace appear in a second
request, and fewer in a third), and any dependence of the answer on the prompt (rank correlation
0.07).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from kvab.declarations import Json
from kvab.errors import InputError
from kvab.trace.reading import write_lines

SEED = 1

# Marginals of the Mooncake FAST25 conversation trace (sha256 b8cbb061…, 12,031 rows): value at
# each percentile, as `numpy.percentile` gives it, rounded to whole tokens or requests.
PROMPT_PERCENTILES = (0, 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 97, 98, 99, 99.5, 99.9, 100)
PROMPT_TOKENS = (
    *(891, 894, 901, 964, 1662, 3263, 4993, 6909, 9570, 13196, 17869, 27367, 39550, 52215, 66449),
    *(85400, 100810, 121301, 126195),
)
ONE_TOKEN_PERCENT = 100 * 72 / 12031
ANSWER_PERCENTILES = (
    *(0, ONE_TOKEN_PERCENT, ONE_TOKEN_PERCENT + 1e-6, 1, 3, 5, 10, 15, 20, 25, 30, 40, 50, 60, 70),
    *(80, 90, 95, 99, 99.9, 100),
)
ANSWER_TOKENS = (
    *(1, 1, 2, 3, 5, 10, 24, 46, 100, 156, 213, 291, 350, 399, 447),
    *(504, 597, 698, 1119, 2000, 2000),
)
BURST_PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100)
BURST_REQUESTS = (2, 4, 5, 6, 8, 10, 12, 15, 16, 18, 20, 23, 28)
BURST_STEP_MS = 3000

# Seconds from a turn to the next of its conversation, by percentile (of 4,658 such pairs).
GAP_PERCENTILES = (1, 10, 25, 50, 75, 90, 95)
GAP_S = (12, 42, 66, 123, 264, 483, 615)
# Share of rows that go on an earlier conversation, by tenth of the prompt length. The share once
# the first minutes are over is higher: an hour loses about 6 % of the pairs to its beginning.
WARM_FACTOR = 1.06
CONTINUING_SHARE = (0.021, 0.187, 0.527, 0.333, 0.368, 0.449, 0.504, 0.531, 0.506, 0.445)
# Two blocks beyond the earlier prompt is the median: its answer and a short question. The rest
# bring a longer text; their share is set so that the cache efficiency comes out at 36.64 %.
LONG_QUESTION_SHARE = 0.435


def synthesize(rows: int = 12031, seed: int = SEED, *, block_tokens: int = 512) -> list[Json]:
    """Return the rows of a generated trace, each with ``"synthetic": True``.

    Parameters
    ----------
    rows : int
        Requests, 1 or more.
    seed : int
        Equal seeds give equal rows.
    block_tokens : int
        Prompt tokens for each hash id; the cache efficiency is that of the real trace at 512.

    Returns
    -------
    list of dict
        ``timestamp`` (ms, never falls), ``input_length`` and ``output_length`` (tokens),
        ``hash_ids`` (one an input block) and ``synthetic``.

    Raises
    ------
    InputError
        If ``rows``, ``seed`` or ``block_tokens`` is out of range.
    """
    for name, value, least in (("rows", rows, 1), ("seed", seed, 0), ("blocks", block_tokens, 1)):
        if value < least:
            raise InputError(f"synthesize: expected {name} of {least} or more, got {value}")
    rng = np.random.default_rng(seed)
    at_ms = _timestamps_ms(rows, rng)
    rank = rng.permutation(rows)
    percentile = 100 * (rank + 0.5) / rows
    prompt = _lengths(percentile, PROMPT_PERCENTILES, PROMPT_TOKENS)
    percentile = 100 * (rng.permutation(rows) + 0.5) / rows
    answer = _lengths(percentile, ANSWER_PERCENTILES, ANSWER_TOKENS)
    wanted = _wanted_blocks(rank, prompt, block_tokens, rng)
    shared = _shared(at_ms, prompt, answer, wanted, block_tokens, rng)
    return [
        {
            "timestamp": int(at_ms[row]),
            "input_length": int(prompt[row]),
            "output_length": int(answer[row]),
            "hash_ids": ids,
            "synthetic": True,
        }
        for row, ids in enumerate(_hash_ids(-(-prompt // block_tokens), *shared))
    ]


def write_generated(
    path: Path,
    rows: int = 12031,
    seed: int = SEED,
    *,
    block_tokens: int = 512,
    overwrite: bool = False,
) -> Path:
    """Write a generated trace, whole or not at all, and return its path.

    Raises
    ------
    InputError
        If the file exists and is not to be overwritten, its folder cannot be written, or an
        argument of `synthesize` is out of range.
    """
    made = synthesize(rows, seed, block_tokens=block_tokens)
    return write_lines(Path(path), [json.dumps(row) for row in made], overwrite=overwrite)


def generated(rows: int, block_tokens: int, folder: Path) -> Path:
    """Write the generated trace that stands in for a study's own; its file is called what it is.

    It is written anew each time, so that a file left by an older version is not replayed. Where
    ``folder`` cannot be written, a temporary one takes its place.
    """
    name = f"GENERATED WORKLOAD (seed {SEED}).jsonl"
    path = folder / f"synthetic-{rows}-{block_tokens}" / name
    try:
        write_generated(path, rows, block_tokens=block_tokens, overwrite=True)
    except InputError:
        path = Path(tempfile.mkdtemp(prefix="kvab-")) / path.name
        write_generated(path, rows, block_tokens=block_tokens)
    return path


def _timestamps_ms(rows: int, rng: np.random.Generator) -> np.ndarray:
    bursts = rows // 8 + 1  # more than are needed: the mean burst is above 10
    percentile = 100 * (rng.permutation(bursts) + 0.5) / bursts
    sizes = np.rint(np.interp(percentile, BURST_PERCENTILES, BURST_REQUESTS)).astype("int64")
    return BURST_STEP_MS * np.repeat(np.arange(bursts), sizes)[:rows]


def _lengths(
    percentile: np.ndarray, knots: tuple[float, ...], tokens: tuple[int, ...]
) -> np.ndarray:
    """Interpolate on a log scale: lengths are skewed, and a straight line lifts the mean."""
    return np.rint(np.exp(np.interp(percentile, knots, np.log(tokens)))).astype("int64")


def _wanted_blocks(
    rank: np.ndarray, prompt: np.ndarray, block_tokens: int, rng: np.random.Generator
) -> np.ndarray:
    """Return, by row, the leading blocks to take from an earlier prompt; 0 starts anew."""
    rows = len(rank)
    tenth = np.arange(rows) * 10 // rows
    blocks = -(-prompt // block_tokens)
    by_rank = np.empty(rows, dtype="int64")
    by_rank[rank] = blocks
    continuing = _evenly(WARM_FACTOR * np.array(CONTINUING_SHARE)[tenth], rng)
    long = _evenly(continuing * LONG_QUESTION_SHARE, rng)
    wanted = np.where(long, rng.integers(2, np.maximum(by_rank - 1, 3)), by_rank - 2)
    return np.where(continuing, np.maximum(wanted, 2), 0)[rank]


def _evenly(share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Choose entries with these probabilities, spread evenly: their number hardly varies."""
    return np.diff(np.floor(np.cumsum(share) + rng.random()), prepend=0) > 0


def _shared(
    at_ms: np.ndarray,
    prompt: np.ndarray,
    answer: np.ndarray,
    wanted: np.ndarray,
    block_tokens: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return, by row, the earlier row that it goes on (-1: none) and the blocks taken from it."""
    rows = len(prompt)
    whole = prompt // block_tokens
    gap_s = np.exp(np.interp(100 * rng.random(rows), GAP_PERCENTILES, np.log(GAP_S)))
    first = np.searchsorted(at_ms, at_ms - 1000 * GAP_S[-1])
    last = np.searchsorted(at_ms, at_ms - 1000 * GAP_S[0], side="right")
    earlier = np.full(rows, -1)
    free = np.ones(rows, dtype=bool)
    for row in np.flatnonzero((wanted > 0) & (at_ms >= 1000 * gap_s)):
        near = slice(first[row], last[row])
        fits = free[near] & (whole[near] > 1) & (prompt[near] + answer[near] <= prompt[row])
        fitting = first[row] + np.flatnonzero(fits)
        if len(fitting):
            gap_ratio = (at_ms[row] - at_ms[fitting]) / (1000 * gap_s[row])
            miss = np.abs(whole[fitting] - wanted[row]) + np.abs(np.log(gap_ratio))
            earlier[row] = fitting[np.argmin(miss)]
            free[earlier[row]] = False
    return earlier, np.where(earlier < 0, 0, whole[earlier])


def _hash_ids(blocks: np.ndarray, earlier: np.ndarray, shared: np.ndarray) -> list[list[int]]:
    """Return the ids of each row: its earlier row's leading ones, then new ones from the count."""
    result: list[list[int]] = []
    following = 1
    for row, count in enumerate(blocks.tolist()):
        ids = result[earlier[row]][: shared[row]] if earlier[row] >= 0 else [0]
        new = count - len(ids)
        result.append([*ids, *range(following, following + new)])
        following += new
    return result
