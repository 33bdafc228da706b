"""Commands in a pod, over a WebSocket: binary, repeated when the connection is lost.

Input: a pod and a command. Output: what it wrote, or an error with its exit code.
"""

from __future__ import annotations

import time
from typing import Any

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
)

from kvab.clusters.kubernetes.apierrors import message, told
from kvab.clusters.kubernetes.kube import Kube
from kvab.console import mask
from kvab.errors import DependencyError, KvabError

FRAME_BYTES = 64 * 2**10
TRIES = 8
# A stream that cannot be opened is tried for a minute, the last handshake included.
OPEN_S, HANDSHAKE_S = 60.0, 20.0
FINAL = (401, 403, 404)


class Broken(DependencyError):
    """A stream ended before its command did."""


class Unopened(Broken):
    """A stream could not be opened, so far."""


class Refused(Broken):
    """The API server does not open streams for this account, or there is no such pod."""


class Failed(DependencyError):
    """The command ran and failed."""


class Pod:
    """Commands in one container of a pod."""

    def __init__(self, kube: Kube, name: str, container: str) -> None:
        self.kube, self.name, self.container = kube, name, container

    def run(self, *command: str, stdin: bytes = b"", timeout_s: float = 300) -> bytes:
        """Return what a command writes to its standard output.

        Raises
        ------
        Broken
            If the connection was lost; the command may be repeated.
        Failed
            If the command failed.
        """
        import websocket

        out = bytearray()
        stream = self._open(command)
        try:
            try:
                for place in range(0, len(stdin), FRAME_BYTES):
                    stream.write_stdin(stdin[place : place + FRAME_BYTES])
                deadline = time.monotonic() + timeout_s
                while stream.is_open():
                    stream.update(timeout=1)
                    out += stream.read_channel(1) or b""
                    if time.monotonic() > deadline:
                        raise Broken(f"pod {self.name}: {command[0]} took over {timeout_s:g} s")
                out += stream.read_channel(1) or b""
                said = (stream.read_channel(2) or b"").decode("utf-8", "replace").strip()
                code = _exit_code(stream)
            finally:
                stream.close()
                stream.sock.shutdown()  # what `close` leaves out where the other side was first
        except (websocket.WebSocketException, OSError) as error:
            raise Broken(f"exec in pod {self.name}: {error}") from None
        if code is None:
            raise Broken(f"exec in pod {self.name}: the connection was lost")
        if code:
            raise Failed(
                f"pod {self.name}: {command[0]} {' '.join(_arguments(command))}: exit code {code}: "
                f"{mask(said) or 'it said nothing'}; is the volume full, or changed meanwhile?"
            )
        return bytes(out)

    def _open(self, command: tuple[str, ...]) -> Any:
        import websocket
        from kubernetes import client
        from kubernetes.client.rest import ApiException
        from kubernetes.stream import stream

        core = client.CoreV1Api(self.kube.api)
        websocket.setdefaulttimeout(HANDSHAKE_S)
        try:
            opened = stream(
                core.connect_get_namespaced_pod_exec,
                self.name,
                self.kube.namespace,
                container=self.container,
                command=list(command),
                stdin=True,
                stdout=True,
                stderr=True,
                tty=False,
                binary=True,  # text would be decoded, and broken archives come of it
                _preload_content=False,
            )
        except ApiException as error:
            raise _unopened(f"exec in pod {self.name}", error.__context__) from None
        opened.sock.settimeout(None)
        return opened

    def patiently(self, *command: str, stdin: bytes = b"") -> bytes:
        """Return a command's output; a lost connection is tried again."""
        again = _retrying(Broken, stop_after_attempt(TRIES))
        opened = _retrying(Unopened, stop_before_delay(OPEN_S - HANDSHAKE_S))
        return again(opened, self.run, *command, stdin=stdin)


def _unopened(what: str, cause: BaseException | None) -> BaseException:
    """Return what to raise for a failed handshake: its status and words, not its headers."""
    from kubernetes.client.rest import ApiException

    if not isinstance(cause, Exception):  # the client takes Ctrl-C for a failed handshake
        return cause or Unopened(what)
    status = getattr(cause, "status_code", 0)
    answer = (getattr(cause, "resp_body", None) or b"").decode("utf-8", "replace")
    plain = ApiException(status=status, reason=answer or getattr(cause, "status_message", cause))
    plain.body = answer
    if status not in FINAL:
        after = f"HTTP {status}: " if status else ""
        return Unopened(f"{what}: {after}{message(plain)}; is the cluster up?")
    try:
        with told(what):
            raise plain
    except KvabError as error:
        return Refused(str(error))


def _arguments(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return what a command works on, without the text of a script."""
    return command[4:] if command[1:2] == ("-c",) else command[1:]


def _retrying(kind: type[Broken], stop: Any) -> Retrying:
    return Retrying(
        retry=retry_if_exception(lambda error: type(error) is kind),
        stop=stop,
        wait=wait_exponential(multiplier=0.2, max=10),
        reraise=True,
    )


def _exit_code(stream: Any) -> int | None:
    try:
        return stream.returncode
    except (TypeError, KeyError, ValueError, LookupError):
        return None  # no status was sent: the stream was cut
