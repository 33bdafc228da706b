"""The machines of the emulated cluster: pods as local processes, a folder as the shared volume.

The benchmark's own scripts run as they are; where its image would install AIPerf, a small program
writes records in AIPerf's format instead (``fake_aiperf.py``).
"""

import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from aiohttp import WSMsgType, web
from controllers import parts

HERE = Path(__file__).parent
SECRET_TEXT = "hf_abcdefghijklmnop"
CHUNK = 'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\ndata: [DONE]\n\n'


class Node:
    """Runs what pods run; one shared folder for all of them."""

    def __init__(self, server, folder):
        self.server, self.folder = server, folder
        self.volume, self.scripts = folder / "perf-cache", folder / "opt"
        self.volume.mkdir()
        self.logs, self.processes, self.previous = {}, {}, {}
        self.requests, self.models, self.health, self.completion = {}, None, None, CHUNK
        self.hits = 1.0
        self.environment = {}
        self.sockets = tempfile.mkdtemp(dir="/tmp")  # the path of tmux's socket is short
        self.programs = folder / "bin"
        self.programs.mkdir()
        self._program("aiperf", f'exec {sys.executable} {HERE / "fake_aiperf.py"} "$@"')
        pip = 'if [ "$2" = pip ]; then [ "$3" = freeze ] && echo aiperf==0.13.0; exit 0; fi'
        self._program("python", f'{pip}; exec {sys.executable} "$@"')
        query = "echo 0, NVIDIA H200, GPU-1; echo 1, NVIDIA H200, GPU-2"
        self._program("nvidia-smi", query)
        # The benchmark looks each second whether its session has ended; here more often.
        sleep, tail = (shutil.which(name) for name in ("sleep", "tail"))
        self._program("sleep", f'[ "$1" = 1 ] && exec {sleep} 0.1; exec {sleep} "$@"')
        often = f'[ "$3 $4" = "-s 1" ] && shift 4 && exec {tail} -n +1 -s 0.05 "$@"'
        self._program("tail", f'{often}; exec {tail} "$@"')

    def _program(self, name, script):
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def local(self, text):
        """Return a command's word with the pod's places replaced by ours."""
        for service in ("agg-8xtp2", "agg-router-8xtp2", "disagg-6p-2d", "disagg-router-6p-2d"):
            here = f"http://127.0.0.1:{self.server.port}/frontends/{service}-frontend"
            text = text.replace(f"http://{service}-frontend:8000", here)
        for place in ("/opt/benchmark", "/opt/campaign"):
            text = text.replace(place, str(self.scripts))
        return text.replace("/perf-cache", str(self.volume))

    async def start(self, pod):
        """Run a Job's pod; return its exit code."""
        container = pod["spec"]["containers"][0]
        name = pod["metadata"]["name"]
        if name.startswith("model-download"):
            self.logs[name] = f"Qwen/Qwen3-32B: 17 files, HF_TOKEN={SECRET_TEXT}\n"
            return 0
        self.scripts.mkdir(exist_ok=True)
        for volume in pod["spec"].get("volumes", []):
            if "configMap" in volume:
                space = pod["metadata"]["namespace"]
                scripts = self.server.store.get("configmaps", space, volume["configMap"]["name"])
                items = volume["configMap"].get("items")
                for item in items or [{"key": key, "path": key} for key in scripts["data"]]:
                    file, text = self.scripts / item["path"], scripts["data"][item["key"]]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    if not file.exists() or file.read_text() != text:  # others may be reading it
                        file.write_text(text)
        given = {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}
        environment = {k: v for k, v in os.environ.items() if k not in ("TMUX", "KUBECONFIG")}
        environment |= given | {"TMUX_TMPDIR": self.sockets, "RETRY_S": "0.1"} | self.environment
        environment["PATH"] = f"{self.programs}:{environment['PATH']}"
        command = [*container["command"], *container["args"]]
        command = [
            self.local(word.replace("$(RUN_ID)", given.get("RUN_ID", ""))) for word in command
        ]
        output = (self.folder / f"{name}.log").open("wb")
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        self.processes[name] = process
        return await process.wait()

    def kill(self, name):
        """End the process of a pod, as when it is deleted."""
        process = self.processes.pop(name, None)
        if process and process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)

    def close(self):
        for name in list(self.processes):
            self.kill(name)
        shutil.rmtree(self.sockets, ignore_errors=True)

    def log(self, pod, *, previous):
        name = pod["metadata"]["name"]
        if previous:
            return self.previous.get(name)
        path = self.folder / f"{name}.log"
        if path.exists():
            return path.read_text(errors="replace")
        return self.logs.get(name, f"started {name} with HF_TOKEN={SECRET_TEXT}\n")

    async def exec(self, pod, command, socket, cut=None):
        """Run a command for a pod; its channels are those of v4.channel.k8s.io."""
        environment = {**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}"}
        try:
            process = await asyncio.create_subprocess_exec(
                *[self.local(word) for word in command],
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError as error:
            return await socket.send_bytes(b"\x03" + _status(127, str(error)))
        sent = 0

        async def pump(stream, channel):
            nonlocal sent
            while part := await stream.read(16_384):
                sent += len(part)
                if cut is not None and sent > cut:
                    await socket.send_bytes(bytes([channel]) + part[: cut - sent])
                    process.kill()
                    await socket.close(code=1006)
                    return
                await socket.send_bytes(bytes([channel]) + part)

        async def feed():
            async for message in socket:
                if message.type == WSMsgType.BINARY and message.data[:1] == b"\x00":
                    process.stdin.write(message.data[1:])
                    await process.stdin.drain()

        feeding = asyncio.ensure_future(feed())
        await asyncio.gather(pump(process.stdout, 1), pump(process.stderr, 2))
        code = await process.wait()
        feeding.cancel()
        if not socket.closed:
            await socket.send_bytes(b"\x03" + _status(code))

    async def serve(self, request, service, rest):
        """Answer as a deployment's frontend: models, health, completions, counters."""
        name = service.removesuffix("-frontend")
        held = next((d for d in self.server.store.find("dynamographdeployments")
                     if d["metadata"]["name"] == name), None)  # fmt: skip
        pods = [
            pod
            for pod in self.server.store.find("pods")
            if pod["metadata"]["labels"].get("nvidia.com/dynamo-graph-deployment-name") == name
            and any(
                c["type"] == "Ready" and c["status"] == "True"
                for c in pod.get("status", {}).get("conditions", [])
            )
        ]
        parts = [pod["metadata"]["labels"]["nvidia.com/dynamo-component"] for pod in pods]
        if held is None or "Frontend" not in parts:
            return web.json_response({"message": "no endpoints available"}, status=503)
        workers = [part for part in parts if part != "Frontend"]
        if rest == "v1/models":
            models = self.models if self.models is not None else ["Qwen/Qwen3-32B"]
            return web.json_response({"data": [{"id": model} for model in models]})
        if rest == "health":
            listed = [self._instance(n, part) for n, part in enumerate(workers)]
            return web.json_response({"status": "healthy", "instances": self.health or listed})
        if rest == "metrics":
            return web.Response(text=self._counters(name, held))
        body = await request.json()
        self.requests[name] = self.requests.get(name, 0) + (body.get("max_tokens") != 8)
        if self.completion is None:
            return web.json_response({"message": "model not found"}, status=404)
        return web.Response(text=self.completion, content_type="text/event-stream")

    def _instance(self, number, part):
        component = "prefill" if "Prefill" in part else "backend"
        return {"component": component, "endpoint": "generate", "instance_id": number}

    def _counters(self, name, held):
        kv = any("kv" in part.args for part in parts(held) if part.kind == "frontend")
        events = 40 + 3 * self.requests.get(name, 0) if kv else 0
        hits = self.hits * self.requests.get(name, 0) if kv else 0
        label = 'dynamo_component_kv_cache_events_applied{event_type="stored",status='
        return (
            "# TYPE dynamo_component_kv_cache_events_applied counter\n"
            f'{label}"ok"}} {events * self.hits}\n{label}"parent_block_not_found"}} 7\n'
            f"dynamo_component_router_kv_hit_rate_sum {hits}\n"
        )


def _status(code, message=""):
    if code == 0:
        return json.dumps({"status": "Success"}).encode()
    causes = [{"reason": "ExitCode", "message": str(code)}]
    return json.dumps(
        {"status": "Failure", "message": message, "details": {"causes": causes}}
    ).encode()
