"""The figures of a trace: those of the page's setup table, and what it does not say.

Input: a trace. Output: plain numbers, and the reusable part of each prompt.
"""

from __future__ import annotations

import numpy as np

from kvab.declarations import Json
from kvab.trace.reading import Trace


def describe(trace: Trace) -> Json:
    """Return the figures of a trace, the document of ``kvab trace describe --json``.

    Notes
    -----
    A *reference* is one hash id of one prompt; an id is *reused* if more than one request has it;
    a *repeat* is any reference to an id but its first. Cache efficiency is repeats over
    references: what an unlimited cache shared by all workers would save, in blocks. These are the
    figures of the page's setup table.
    """
    ticks, bursts = np.unique(trace.timestamp_ms, return_counts=True)
    duration_s = float(trace.arrival_ms[-1]) / 1000
    tokens = trace.input_tokens.astype("int64")
    shortest, longest = int(tokens.min()), int(tokens.max())
    return {
        "rows": len(trace),
        "duration_s": duration_s,
        "input_tokens": {"mean": float(tokens.mean()), "min": shortest, "max": longest},
        "output_tokens": {"mean": float(trace.output_tokens.mean())},
        **_block_counts(trace),
        "distinct_timestamps": len(ticks),
        "largest_burst": int(bursts.max()),
        "one_token_rows": int((trace.output_tokens == 1).sum()),
        "sha256": trace.sha256,
        "name": trace.name,
        "synthetic": trace.synthetic,
        "timestamp_step_s": float(np.median(np.diff(ticks))) / 1000 if len(ticks) > 1 else None,
        "mean_burst": float(bursts.mean()),
        "longest_prompt_plus_answer_tokens": int((tokens + trace.output_tokens).max()),
        "input_tokens_per_s": float(tokens.sum()) / duration_s if duration_s else None,
    }


def _block_counts(trace: Trace) -> dict[str, float]:
    counts = [len(row) for row in trace.hash_ids]
    requests = np.repeat(np.arange(len(trace)), counts)
    ids = np.fromiter((i for row in trace.hash_ids for i in row), "int64", sum(counts))
    unique, first, block = np.unique(ids, return_index=True, return_inverse=True)
    first_request = requests[first]
    last_request = first_request.copy()
    np.maximum.at(last_request, block, requests)
    repeats = len(ids) - len(unique)
    return {
        "unique_blocks": len(unique),
        "reused_blocks": int((last_request > first_request).sum()),
        "block_references": len(ids),
        "repeat_references": repeats,
        "cache_efficiency": repeats / len(ids),
    }


def describe_rows(d: Json) -> list[tuple[str, str]]:
    """Return the description as labels and formatted values, the page's own rows first."""
    tokens = d["input_tokens"]
    step_s = d["timestamp_step_s"]
    return [
        ("requests", f"{d['rows']:,}"),
        ("duration [min]", f"{d['duration_s'] / 60:.1f}"),
        ("mean prompt [tokens]", f"{tokens['mean']:,.0f}"),
        ("mean answer [tokens]", f"{d['output_tokens']['mean']:,.0f}"),
        ("shortest to longest prompt [tokens]", f"{tokens['min']:,} to {tokens['max']:,}"),
        ("cache efficiency", f"{d['cache_efficiency']:.2%}"),
        ("unique blocks", f"{d['unique_blocks']:,}"),
        ("blocks in more than one request", f"{d['reused_blocks']:,}"),
        ("block references", f"{d['block_references']:,}"),
        ("repeat references", f"{d['repeat_references']:,}"),
        ("prompt tokens a second", f"{d['input_tokens_per_s'] or 0:,.0f}"),
        ("distinct timestamps", f"{d['distinct_timestamps']:,}"),
        ("step of the clock [s]", "-" if step_s is None else f"{step_s:g}"),
        ("mean and largest burst [requests]", f"{d['mean_burst']:.1f} and {d['largest_burst']}"),
        ("one-token answers", f"{d['one_token_rows']:,}"),
        ("longest prompt + answer [tokens]", f"{d['longest_prompt_plus_answer_tokens']:,}"),
        ("sha256", d["sha256"]),
    ]


def reusable_tokens(trace: Trace) -> np.ndarray:
    """Return, by row, the prompt tokens that an earlier row had already brought.

    Returns
    -------
    ndarray of int32, shape (rows,)
        Tokens in the longest run of leading blocks that all appeared in earlier rows: what an
        unlimited cache shared by all workers would serve. A last block counts with the tokens
        that the prompt has of it, so the sum is not the repeat references of `describe` times
        the block size.
    """
    seen: set[int] = set()
    result = np.zeros(len(trace), dtype="int32")
    for row, ids in enumerate(trace.hash_ids):
        leading = next((n for n, block in enumerate(ids) if block not in seen), len(ids))
        result[row] = min(leading * trace.block_tokens, trace.input_tokens[row])
        seen.update(ids)
    return result
