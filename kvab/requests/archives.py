"""A folder, or the folder inside an archive.

Input: a path that a user names. Output: a folder; that of an archive is gone when it is closed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
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


@contextlib.contextmanager
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
        expected = "a run folder, a folder of AIPerf artifacts or an archive of one"
        raise InputError(expected=expected, got="nothing of that name", path=path,
                         fix="check the name")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="kvab-") as name:
        _unpack(path, Path(name))
        try:
            yield Path(name)
        except InputError as error:  # which names a folder that the user never saw
            raise InputError(str(error).replace(name, str(path))) from None


def _unpack(path: Path, into: Path) -> None:
    left = min(MOST_BYTES, max(FREE_BYTES, MOST_TIMES * path.stat().st_size))
    try:
        for count, (name, size, content) in enumerate(_files(path), start=1):
            left -= size  # no more can be read of a file than the archive says
            if count > MOST_MEMBERS:
                raise InputError(f"expected at most {MOST_MEMBERS:,} files, got more", path=path)
            if left < 0:
                problem = f"unpacks to over {MOST_TIMES} times its size, as no artifacts do"
                fix = "if it is right, unpack it yourself and name the folder"
                raise InputError(problem, path=path, fix=fix)
            target = into / _inside(path, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                shutil.copyfileobj(content, file)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, pa.ArrowException,
            NotImplementedError, RuntimeError, ValueError) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        expected = "a tar or zip archive that can be unpacked"
        raise InputError(expected=expected, got=reason, path=path,
                         fix="pack it again or name the folder itself") from None  # fmt: skip


def _files(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield the name, size and content of each file in an archive."""
    with path.open("rb") as file, contextlib.ExitStack() as opened:
        if file.read(2) == b"PK":
            zipped = opened.enter_context(zipfile.ZipFile(path))
            for entry in zipped.infolist():
                if stat.S_ISLNK(entry.external_attr >> 16):
                    raise _rejected(path, entry.filename, "a link")
                if not entry.is_dir():
                    with zipped.open(entry) as unzipped:
                        yield entry.filename, entry.file_size, unzipped
            return
        stream = None
        if path.suffix in (".zst", ".tzst"):
            stream = opened.enter_context(pa.input_stream(str(path), compression="zstd"))
        members = opened.enter_context(tarfile.open(path, "r|" if stream else "r|*", stream))
        for member in members:
            if not (member.isdir() or member.isfile()):
                raise _rejected(path, member.name, "a link or device")
            if content := members.extractfile(member):
                yield member.name, member.size, content


def _inside(path: Path, name: str) -> PurePosixPath:
    """Return where a file of an archive goes, rejected if it leaves the folder.

    Tar's own ``data`` filter would put an absolute path inside in silence, and zip has none.
    """
    inside = PurePosixPath(name.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts or ":" in str(inside).split("/")[0]:
        raise _rejected(path, name, "a path that leaves the folder")
    return inside


def _rejected(path: Path, name: str, what: str) -> InputError:
    return InputError(
        f"expected files only, got {what} ({name!r:.80})", path=path, fix="pack it again"
    )


def within(folder: Path, shown: Path) -> list[Path]:
    """Return a folder and those below it.

    Raises
    ------
    InputError
        If they are far more than artifacts have.
    """
    folders = []
    for name, _, _ in os.walk(folder):
        folders.append(Path(name))
        if len(folders) > MOST_FOLDERS:
            got = f"more than {MOST_FOLDERS:,} folders"
            raise InputError(expected="a run folder or AIPerf's artifacts", got=got, path=shown,
                             fix="name the folder of one run")  # fmt: skip
    return folders
