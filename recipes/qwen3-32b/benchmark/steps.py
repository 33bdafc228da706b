"""Steps around AIPerf: fetch TRACE | ready URL MODEL | finish FOLDER CODE."""

import hashlib
import http.client
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import Request, urlopen

RETRY_S = float(os.environ["RETRY_S"])


def sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(trace: str) -> None:
    """Bring the trace to the volume, unless it is there."""
    source, expected = os.environ["TRACE_URL"], os.environ["TRACE_SHA256"]
    path = Path(trace)
    if path.exists():
        if sha256(path) == expected:
            print(f"benchmark: {path} is there, sha256 {expected}")
            return
        print(f"benchmark: {path} has another sha256; fetching it anew")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.environ['RUN_ID']}.part")
    for attempt in range(1, 6):
        try:
            with urlopen(source, timeout=60) as response, part.open("wb") as file:
                shutil.copyfileobj(response, file)
            got = sha256(part)
            if got == expected:
                part.replace(path)
                print(f"benchmark: {path} fetched, sha256 {expected}")
                return
            why = f"sha256 {got}"
        except (OSError, http.client.HTTPException) as error:
            why = str(error)
        part.unlink(missing_ok=True)
        print(f"benchmark: try {attempt} of 5: expected sha256 {expected}, got {why}")
        time.sleep(RETRY_S * attempt)
    sys.exit(f"benchmark: no trace with sha256 {expected} at {source}")


def ready(url: str, model: str) -> None:
    """Wait until the frontend lists the model and completes a request to it."""
    deadline, why = time.monotonic() + float(os.environ["READY_S"]), ""
    while time.monotonic() < deadline:
        try:
            with urlopen(f"{url}/v1/models", timeout=10) as response:
                models = [entry["id"] for entry in json.load(response)["data"]]
            if model not in models:
                raise ValueError(f"models {models}")
            complete(url, model)
            print(f"benchmark: {url} serves {model}")
            return
        except (OSError, ValueError, LookupError, http.client.HTTPException) as error:
            why = str(error)
        time.sleep(RETRY_S)
    sys.exit(f"benchmark: {url} did not serve {model} in time: {why}")


def complete(url: str, model: str) -> None:
    """Send one request; its answer has to have tokens and an end."""
    # A model is listed seconds before a request to it succeeds: only an answer counts.
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 8,
        "stream": True,
    }
    headers = {"Content-Type": "application/json"}
    request = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urlopen(request, timeout=120) as response:
        lines = [line.decode().removeprefix("data:").strip() for line in response]
    chunks = [json.loads(line) for line in lines if line.startswith("{")]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk.get("choices", [])]
    text = [delta.get("content") or delta.get("reasoning_content") for delta in deltas]
    if "[DONE]" not in lines or not any(text):
        raise ValueError("an answer without tokens or without an end")


def finish(artifacts: str, code: str) -> None:
    """Write finished.json, last of all: every file with its size and digest, and the exit code."""
    folder = Path(artifacts)
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    marker = {
        "schema": 1,
        "run_id": os.environ["RUN_ID"],
        "exit_code": int(code),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": files,
    }
    part = folder / "finished.json.part"
    part.write_text(json.dumps(marker, indent=1))
    part.replace(folder / "finished.json")
    print(f"benchmark: {len(files)} files in {folder}, exit code {code}")


if __name__ == "__main__":
    steps: dict[str, Callable[..., None]] = {"fetch": fetch, "ready": ready, "finish": finish}
    steps[sys.argv[1]](*sys.argv[2:])
