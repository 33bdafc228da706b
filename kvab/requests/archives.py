"""A folder, or the folder inside an archive.

Input: a path that a user names. Output: a folder; that of an archive is gone when it is closed.
"""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

import pyarrow as pa

from kvab.errors import InputError

ARTIFACT = re.compile(r"\.jsonl?(\.(gz|bz2|zst))?$")
MOST_MEMBERS = 10_000
MOST_FOLDERS = 2_000
MOST_BYTES = 64 << 30
FREE_BYTES = 256 << 20  # below this size an archive may unpack to any multiple of itself
MOST_TIMES = 200  # larger; AIPerf's records pack to a tenth
CHUNK = 1 << 20


@contextmanager
def folder_of(path: Path) -> Iterator[Path]:
    """Yield a folder or AIPerf's file as it is, or the content of an archive in a temporary folder.

    Raises
    ------
    InputError
        If there is no such path; if it is not an archive, or one that holds a link, leaves its
        folder or unpacks to far more than an archive of artifacts would.
    """
    if path.is_dir() or (path.is_file() and ARTIFACT.search(path.name)):
        yield path
        return
    if not path.exists():
        raise InputError(
            f"{path}: expected a run folder, a folder of AIPerf artifacts or an archive of one, "
            "got nothing of that name; check the name"
        )
    with tempfile.TemporaryDirectory(prefix="kvab-") as name:
        _unpack(path, Path(name))
        try:
            yield Path(name)
        except InputError as error:  # which names a folder that the user never saw
            raise InputError(str(error).replace(name, str(path))) from None


def _unpack(path: Path, into: Path) -> None:
    allowed = min(MOST_BYTES, max(FREE_BYTES, MOST_TIMES * path.stat().st_size))
    members = 0
    try:
        for name, stream in _members(path):
            members += 1
            if members > MOST_MEMBERS:
                raise InputError(f"{path}: expected at most {MOST_MEMBERS:,} files, got more")
            target = into / _inside(path, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            allowed -= _copy(path, stream, target, allowed)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, pa.ArrowException,
            NotImplementedError, RuntimeError, ValueError) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: expected a tar or zip archive that can be unpacked, got {reason}; pack it "
            "again or name the folder itself"
        ) from None


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the name and content of each file in an archive."""
    with path.open("rb") as file:
        packed = file.read(2)
    if packed == b"PK":
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    if (entry.external_attr >> 16) & 0o170000 == 0o120000:
                        raise _refused(path, entry.filename, "a link")
                    with archive.open(entry) as content:
                        yield entry.filename, content
        return
    with _tar(path) as members:
        for member in members:
            if member.isdir():
                continue
            if not member.isfile():
                raise _refused(path, member.name, "a link or device")
            stream = members.extractfile(member)
            assert stream is not None  # it is a file
            yield member.name, stream


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    if path.suffix in (".zst", ".tzst"):
        with (
            pa.input_stream(str(path), compression="zstd") as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            yield archive
    else:
        with tarfile.open(path, "r|*") as archive:
            yield archive


def _inside(path: Path, name: str) -> Path:
    """Return the place of a member, refused if it is not inside the folder."""
    place = PurePosixPath(name.replace("\\", "/"))
    if place.is_absolute() or ".." in place.parts or ":" in (place.parts or ("",))[0]:
        raise _refused(path, name, "a path that leaves the folder")
    return Path(place)


def _copy(path: Path, stream: IO[bytes], target: Path, allowed: int) -> int:
    copied = 0
    with target.open("xb") as file:
        while chunk := stream.read(CHUNK):
            copied += len(chunk)
            if copied > allowed:
                raise InputError(
                    f"{path}: unpacks to over {MOST_TIMES} times its size, far more than AIPerf's "
                    "artifacts do; unpack it yourself if it is right and name the folder"
                )
            file.write(chunk)
    return copied


def _refused(path: Path, name: str, what: str) -> InputError:
    return InputError(f"{path}: expected files only, got {what} ({name!r:.80}); pack it again")


def within(folder: Path, shown: Path) -> list[Path]:
    """Return a folder and those below it.

    Raises
    ------
    InputError
        If they are far more than artifacts have.
    """
    places = []
    for place, _, _ in os.walk(folder):
        places.append(Path(place))
        if len(places) > MOST_FOLDERS:
            raise InputError(
                f"{shown}: expected a run folder or AIPerf's artifacts, got more than "
                f"{MOST_FOLDERS:,} folders; name the folder of one run"
            )
    return places


def holding(folder: Path, patterns: tuple[str, ...], shown: Path) -> Path:
    """Return the one folder at or below ``folder`` that holds a file of one of the patterns.

    Raises
    ------
    InputError
        If several do; without any, ``folder`` itself comes back.
    """
    if any(True for pattern in patterns for _ in folder.glob(pattern)):
        return folder
    found = sorted(place for place in within(folder, shown)
                   if any(True for pattern in patterns for _ in place.glob(pattern)))  # fmt: skip
    if len(found) > 1:
        names = ", ".join(str(place.relative_to(folder)) for place in found[:4])
        raise InputError(
            f"{shown}: expected the artifacts of one run, got those of {len(found)} ({names}); "
            "name the folder of one, an archive unpacked"
        )
    return found[0] if found else folder
