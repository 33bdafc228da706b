"""Results of other tools, told by their content, so that they are rejected for what they are.

Input: a file or folder that a user names. Output: none, or the tool's name in an error.
"""

from __future__ import annotations

from pathlib import Path

from kvab.errors import InputError

# What a tool's files hold that no others do; vLLM and SGLang write their means at a file's end.
MARKS = {
    "SGLang's bench_serving": (b'"total_output_tokens_retokenized"', b'"sglang'),
    "vLLM's `vllm bench serve`": (b'"median_ttft_ms"',),
    "GuideLLM": (b'"guidellm_version"', b'"generative_benchmark"'),
    "inference-perf": (b'"load_summary"', b'"output_token_times"'),
    "genai-perf": (b'"service_kind"',),
}
OURS = (b'"benchmark_phase"', b'"aiperf_version"')
MOST_FILES, HEAD_BYTES, TAIL_BYTES = 200, 1 << 20, 1 << 16


def check_tool(place: Path) -> None:
    """Reject a file or folder of another tool than AIPerf.

    Raises
    ------
    InputError
        Naming the tool.
    """
    if not place.is_dir():
        files = [place]
    else:
        depths = ("*", "*/*", "*/*/*")
        files = [path for depth in depths for path in sorted(place.glob(f"{depth}.json*"))]
    found = None
    for path in (each for each in files[:MOST_FILES] if each.is_file()):
        content = _ends(path)
        if any(mark in content for mark in OURS):
            return
        tools = (tool for tool, marks in MARKS.items() if any(mark in content for mark in marks))
        found = found or next(tools, None)
    if found:
        raise InputError(
            f"{place}: expected AIPerf's artifacts, got results of {found}, whose requests are "
            "measured and counted otherwise; benchmark the same server with `aiperf profile`"
        )


def _ends(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(max(file.tell(), path.stat().st_size - TAIL_BYTES))
            return head + file.read(TAIL_BYTES)
    except OSError:
        return b""
