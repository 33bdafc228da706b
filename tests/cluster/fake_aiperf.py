"""Stands where AIPerf would be: sends each row of a trace and writes records in its format."""

import json
import os
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

command = sys.argv[1:]


def option(name):
    return command[command.index(name) + 1]


folder = Path(option("--artifact-dir"))
pace_s = float(os.environ.get("PACE_S", "0"))
hold = Path(os.environ.get("HOLD", "/nothing-holds-it"))
rows = [json.loads(line) for line in Path(option("--input-file")).read_text().splitlines()]
print(f"Profiling: 0/{len(rows)}", flush=True)
if os.environ.get("AIPERF_EXIT"):
    print("ERROR: no request succeeded", flush=True)
    sys.exit(int(os.environ["AIPERF_EXIT"]))
url = urlsplit(option("--url"))
service = HTTPConnection(url.netloc)
start_ns = 1_790_000_000_000_000_000
with (folder / "profile_export.jsonl").open("w") as out:
    for number, row in enumerate(rows):
        body = {"model": option("-m"), "max_tokens": row["output_length"], "stream": True}
        service.request("POST", f"{url.path}/v1/chat/completions", json.dumps(body),
                        {"Content-Type": "application/json"})  # fmt: skip
        service.getresponse().read()
        sent_ns = start_ns + int(1e6 * (row["timestamp"] - rows[0]["timestamp"]))
        tokens, ttft_ms, itl_ms = row["output_length"], 100.0 + number, 10.0
        latency_ms = ttft_ms + itl_ms * (tokens - 1)
        values = {
            "time_to_first_token": (ttft_ms, "ms"),
            "request_latency": (latency_ms, "ms"),
            "input_sequence_length": (row["input_length"], "tokens"),
            "output_sequence_length": (tokens, "tokens"),
            "usage_prompt_tokens": (row["input_length"], "tokens"),
            "usage_completion_tokens": (tokens, "tokens"),
        }
        if tokens > 1:
            values["inter_token_latency"] = (itl_ms, "ms")
        record = {
            "metadata": {
                "session_num": number,
                "x_request_id": f"request-{number}",
                "x_correlation_id": f"session-{number}",
                "conversation_id": f"session_{number:06}",
                "turn_index": 0,
                "credit_issued_ns": sent_ns,
                "request_start_ns": sent_ns,
                "request_ack_ns": sent_ns + 1_000_000,
                "request_end_ns": sent_ns + int(1e6 * latency_ms),
                "worker_id": "worker_1",
                "record_processor_id": "record_processor_1",
                "benchmark_phase": "profiling",
                "was_cancelled": False,
            },
            "metrics": {name: {"value": v, "unit": unit} for name, (v, unit) in values.items()},
            "error": None,
        }
        out.write(json.dumps(record) + "\n")
        out.flush()
        time.sleep(pace_s)
        while hold.exists():
            time.sleep(0.05)
summary = {
    "schema_version": "1.0",
    "aiperf_version": "0.13.0",
    "cli_command": "aiperf " + " ".join(command),
    "was_cancelled": False,
    "request_count": {"unit": "requests", "avg": float(len(rows))},
}
(folder / "profile_export_aiperf.json").write_text(json.dumps(summary))
(folder / "profile_export_aiperf.csv").write_text("Metric,avg\n")
(folder / "inputs.json").write_text(json.dumps({"data": "x" * 1000}))
ready = {"ready": True, "was_cancelled": False, "partial": False}
(folder / ".aiperf_results_ready.json").write_text(json.dumps(ready))
