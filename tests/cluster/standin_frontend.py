"""Answers as Dynamo's frontend does: what a stand-in pod runs, told by MODEL, KV and INSTANCES."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL, KV = os.environ["MODEL"], os.environ["KV"] == "1"
INSTANCES = json.loads(os.environ["INSTANCES"])
served = [0]


class Frontend(BaseHTTPRequestHandler):
    """One answer a path."""

    def answer(self, text, kind="application/json"):
        """Send a whole answer."""
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        """Answer what the readiness of a deployment is told from."""
        if self.path == "/v1/models":
            return self.answer(json.dumps({"data": [{"id": MODEL}]}))
        if self.path == "/metrics":
            name = 'dynamo_component_kv_cache_events_applied{event_type="stored",status="ok"}'
            return self.answer(f"{name} {served[0] if KV else 0}\n", "text/plain")
        return self.answer(json.dumps({"status": "healthy", "instances": INSTANCES}))

    def do_POST(self):
        """Stream one token."""
        self.rfile.read(int(self.headers["Content-Length"]))
        served[0] += 1
        chunk = json.dumps({"choices": [{"delta": {"content": "Hi"}}]})
        self.answer(f"data: {chunk}\n\ndata: [DONE]\n\n", "text/event-stream")

    def log_message(self, *_):
        """Say nothing for each request."""


ThreadingHTTPServer(("", 8000), Frontend).serve_forever()
