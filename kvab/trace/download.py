"""One file over HTTP: bounded tries, progress, and nothing kept that is not the declared file.

Input: an address and a sha256. Output: a file, renamed in once it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from kvab.errors import DependencyError

TIMEOUT_S = 20
TRIES = 3
CHUNK_BYTES = 1 << 16
PASSING = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError)


def download(url: str, sha256: str, destination: Path) -> Path:
    """Fetch a file and return its path.

    Raises
    ------
    DependencyError
        If it cannot be fetched in three tries, or has another sha256.
    """
    beside = destination.with_name(f".{destination.name}.{os.getpid()}")
    tries = Retrying(
        stop=stop_after_attempt(TRIES),
        wait=wait_exponential(multiplier=0.2, max=2),
        retry=retry_if_exception_type(PASSING),
        reraise=True,
    )
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        got = tries(_fetch, url, beside)
        if got != sha256:
            raise DependencyError(
                f"{url}: expected sha256 {sha256[:16]}…, got {got[:16]}…; nothing was kept. "
                "Name a right copy in KVAB_TRACE"
            )
        beside.rename(destination)
    except (*PASSING, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise DependencyError(
            f"{url}: cannot be fetched ({reason}); name a copy in KVAB_TRACE or with --trace"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    return destination


def _fetch(url: str, to: Path) -> str:
    """Stream an address to a file and return its sha256; a short body is an error."""
    digest = hashlib.sha256()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    progress = Progress(*columns, console=Console(stderr=True))
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, progress as bar:
        size = int(answer.headers.get("Content-Length") or 0) or None
        task = bar.add_task(to.name.lstrip("."), total=size)
        with to.open("wb") as file:
            while chunk := answer.read(CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
                bar.advance(task, len(chunk))
        if size is not None and to.stat().st_size != size:
            raise http.client.IncompleteRead(b"", size - to.stat().st_size)
    return digest.hexdigest()
