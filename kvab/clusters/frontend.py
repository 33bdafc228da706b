"""Whether Dynamo's frontend serves: it lists the model, knows every worker, and answers.

Input: a topology, and a way to ask. Output: what is still missing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from kvab.study.manifests import Object, at
from kvab.study.topology import Topology

Ask = Callable[..., tuple[int, str]]
"""Called with a path, and a body to post; returns status and text, 0 if nobody answers."""
ANSWERS_PER_WORKER = 2
PROMPT = "Hello"  # shorter than a block: no cache is warm afterwards
TOKEN = re.compile(r'content"\s*:\s*"[^"]')


def unmet(ask: Ask, topology: Topology) -> Iterator[str]:
    """Yield what is missing before every worker serves; completions are asked for last of all.

    A model is listed seconds before a request to it succeeds, and the first answer of a program
    takes seconds longer than others.
    """
    groups = topology.groups
    model = next(iter(groups.values())).model
    status, text = ask("v1/models")
    models = [at(entry, "id") for entry in _listed(status, text, "data")]
    if model not in models:
        yield f"{model} is listed, now {', '.join(map(str, models)) or status or text}"
    registered = {
        (at(entry, "component"), at(entry, "instance_id"))
        for entry in _listed(*ask("health"), "instances")
        if at(entry, "endpoint") == "generate" and "router" not in str(at(entry, "component"))
    }
    wanted = sum(group.replicas for group in groups.values())
    prefills = groups["prefill"].replicas if "prefill" in groups else 0
    prefill = sum(component == "prefill" for component, _ in registered)
    if prefill != prefills:
        yield f"{prefills} prefill workers registered, now {prefill}"
    if len(registered) - prefill != wanted - prefills:
        yield f"{wanted - prefills} workers registered, now {len(registered) - prefill}"
    messages = [{"role": "user", "content": PROMPT}]
    body = {"model": model, "messages": messages, "max_tokens": 8, "stream": True}
    for _ in range(ANSWERS_PER_WORKER * wanted):
        status, text = ask("v1/chat/completions", body)
        if status != 200 or "[DONE]" not in text or not TOKEN.search(text):
            yield f"a streamed completion, now {status} {text[:120]}"


def _listed(status: int, text: str, key: str) -> list[Object]:
    """Return the list in an answer, empty if there is none."""
    try:
        return list(json.loads(text)[key]) if status == 200 else []
    except (ValueError, LookupError, TypeError):
        return []
