"""Machines of the emulated cluster that run Dynamo's own processes under real AIPerf."""

import asyncio
import sys
import threading
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web
from controllers import pending
from node import Node

from kvab.clusters.stack import Stack
from kvab.study import load_cluster
from kvab.study.manifests import read_configuration
from kvab.study.topology import read_topology


class LiveNode(Node):
    """Starts the live cluster's processes for the deployment that was created, and no other."""

    def __init__(self, server, folder):
        super().__init__(server, folder)
        self.stack, self.held, self.failure, self.started = None, None, None, []
        real = Path(sys.executable).with_name("aiperf")
        self._program("aiperf", f'exec {real} "$@"')

    def bring_up(self, controllers, recipes):
        """Deploy what the API server holds; its pods are ready when the processes serve."""
        self.held = self.server.store.find("dynamographdeployments")[0]
        controllers.script.pods[f"^{self.name}-(?!benchmark|files)"] = lambda pod: (
            None if self.stack else pending(True)
        )
        threading.Thread(target=self._deploy, args=[recipes], daemon=True).start()

    def _deploy(self, recipes):
        name = self.name
        created = {key: self.held[key] for key in ("apiVersion", "kind", "metadata", "spec")}
        folder = self.folder / f"created-{name}"
        folder.mkdir(exist_ok=True)
        (folder / "deploy.yaml").write_text(yaml.safe_dump(created))
        (perf,) = [path for path in recipes.glob("*/perf.yaml") if f"//{name}-" in path.read_text()]
        (folder / "perf.yaml").write_bytes(perf.read_bytes())
        live = Stack()
        try:
            live.serve(read_topology(read_configuration(folder)), load_cluster("live-cpu"))
        except Exception as error:  # the test tells it
            live.close()
            self.failure = error
            return
        programs = live.folder
        self.environment = {
            "HF_HOME": str(programs / "hub"),
            "HOME": str(programs),
            "AIPERF_DATASET_MMAP_CACHE_DIR": str(programs / "prompts"),
        }
        self.started.append(name)
        self.stack = live

    @property
    def name(self):
        return self.held["metadata"]["name"]

    @property
    def address(self):
        return self.stack.url

    def local(self, text):
        if self.stack:
            text = text.replace(
                f"http://{self.held['metadata']['name']}-frontend:8000", self.address
            )
        return super().local(text)

    def kill(self, name):
        super().kill(name)
        if (
            self.stack
            and self.held
            and name.startswith(f"{self.held['metadata']['name']}-frontend")
        ):
            gone, self.stack = self.stack, None
            asyncio.get_event_loop().run_in_executor(None, gone.close)

    def close(self):
        super().close()
        if self.stack:
            self.stack.close()

    async def serve(self, request, service, rest):
        if self.stack is None:
            return web.json_response({"message": "no endpoints available"}, status=503)
        async with aiohttp.ClientSession() as session:
            url, headers = f"{self.address}/{rest}", {"Content-Type": "application/json"}
            body = await request.read()
            async with session.request(request.method, url, data=body, headers=headers) as answer:
                return web.Response(
                    status=answer.status,
                    body=await answer.read(),
                    content_type=answer.content_type,
                )
