"""AIPerf's summary where the single requests were not kept: what aggregates still say.

Input: artifacts without records. Output: the document of ``kvab summarize``, with None for what
aggregates do not tell.
"""

from __future__ import annotations

from typing import Any, TypeGuard

from kvab.requests.aiperf import Artifacts
from kvab.requests.aiperf.records import TO_MS
from kvab.requests.metrics import OVERLOAD, SCHEMA, STATISTICS, Slo

LARGEST = 1e300  # beyond it a product may overflow
NAMES = {
    "ttft_ms": "time_to_first_token",
    "itl_ms": "inter_token_latency",
    "latency_ms": "request_latency",
}


def document(artifacts: Artifacts, slo: Slo) -> dict[str, Any]:
    """Return what a summary says, in the shape of `kvab.requests.metrics.summarize`."""
    served, failed = _count(artifacts, "request_count"), _count(artifacts, "error_request_count")
    failed = failed or 0
    expected = artifacts.expected or (None if served is None else served + failed)
    seconds, tokens = _value(artifacts, "benchmark_duration"), _value(artifacts, "total_osl")
    same = goodput(artifacts) == {
        "time_to_first_token": slo.ttft_ms,
        "inter_token_latency": slo.itl_ms,
    }
    good = _count(artifacts, "good_request_count") if same else None
    cached = _value(artifacts, "total_usage_prompt_cache_read_tokens")
    prompt = _value(artifacts, "total_usage_prompt_tokens")
    return {
        "schema": SCHEMA,
        "requests": {
            "expected": expected,
            "received": served,
            "errors": failed,
            "overload": _overload(artifacts) if failed else 0,
            "one_token": None,
        },
        **{key: _statistics(artifacts, name) for key, name in NAMES.items()},
        "good": {
            "count": good,
            "share": good / expected if good is not None and expected else None,
            "rps": good / seconds if good is not None and seconds else None,
            "ttft_ms": float(slo.ttft_ms),
            "itl_ms": float(slo.itl_ms),
        },
        "output_tokens_per_s": tokens / seconds if tokens is not None and seconds else None,
        "duration_s": seconds,
        "cached_share": cached / prompt if cached is not None and prompt else None,
    }


def missing(artifacts: Artifacts, slo: Slo) -> list[str]:
    """Return what a summary without records does not tell, a sentence each."""
    told = ["single requests: the folder holds AIPerf's summary only, so no pairs and no intervals"]
    told.append("one-token answers: a summary does not count them")
    told.append("inter-token latency: on AIPerf's own token counts")
    if document(artifacts, slo)["good"]["count"] is None:
        found = goodput(artifacts)
        bounds = ", ".join(f"{name} {value:g}" for name, value in found.items()) or "none"
        told.append(
            f"good requests: the bounds are {slo.ttft_ms:g} and {slo.itl_ms:g} ms, the run's "
            f"--goodput was {bounds}"
        )
    return told


def _overload(artifacts: Artifacts) -> int | None:
    """Return how many requests were rejected for overload, None where no error is told."""
    told: Any = artifacts.summary.get("error_summary")
    try:
        return sum(each["count"] for each in told if each["error_details"]["code"] in OVERLOAD)
    except (KeyError, TypeError):
        return None


def _entry(artifacts: Artifacts, name: str) -> dict[str, Any]:
    found = artifacts.summary.get(name)
    return found if isinstance(found, dict) else {}


def _value(artifacts: Artifacts, name: str) -> float | None:
    value = _entry(artifacts, name).get("avg")
    return float(value) if _known(value) else None


def _known(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that can be reckoned with."""
    return isinstance(value, int | float) and -LARGEST < value < LARGEST


def _count(artifacts: Artifacts, name: str) -> int | None:
    value = _value(artifacts, name)
    return None if value is None else round(value)


def _statistics(artifacts: Artifacts, name: str) -> dict[str, float | None]:
    entry = _entry(artifacts, name)
    factor = TO_MS.get(str(entry.get("unit", "ms")))
    if factor is None:
        return dict.fromkeys(STATISTICS)
    values = {each: entry.get("avg" if each == "mean" else each) for each in STATISTICS}
    return {each: factor * value if _known(value) else None for each, value in values.items()}


def goodput(artifacts: Artifacts) -> dict[str, float]:
    """Return AIPerf's own bounds of a good request: since 0.9 under slos, before in input."""
    config = artifacts.summary.get("input_config")
    config = config if isinstance(config, dict) else {}
    older = config.get("input")
    found = config.get("slos") or (older.get("goodput") if isinstance(older, dict) else None)
    found = found if isinstance(found, dict) else {}
    return {name: value for name, value in found.items() if _known(value) and value > 0}
