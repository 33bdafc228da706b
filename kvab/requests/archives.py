"""A folder, or the folder inside an archive.

Input: a path that a user names. Output: a folder; that of an archive is gone when it is closed.
"""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from kvab.errors import InputError

ARTIFACT = re.compile(r"\.jsonl?(\.(gz|bz2|zst))?$")
MOST_FOLDERS = 2_000
MOST_BYTES = 64 << 30
FREE_BYTES = 256 << 20  # below this size an archive may unpack to any multiple of itself
MOST_TIMES = 200  # larger; AIPerf's records pack to a tenth
UNREADABLE = (
    *(OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, pa.ArrowException),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)


@contextlib.contextmanager
def folder_of(path: Path) -> Iterator[Path]:
    """Yield a folder or AIPerf's file as it is, or the content of an archive in a temporary folder.

    Raises
    ------
    InputError
        If there is no such path; if it is not an archive, or one that leaves its folder or unpacks
        to far more than an archive of artifacts would.
    """
    if path.is_dir() or (path.is_file() and ARTIFACT.search(path.name)):
        yield path
        return
    if not path.exists():
        expected = "a run folder, a folder of AIPerf artifacts or an archive of one"
        raise InputError(expected=expected, got="nothing of that name", path=path,
                         fix="check the name")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="kvab-") as name:
        try:
            _unpack(path, Path(name))
        except UNREADABLE as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            expected, fix = "a tar or zip archive that can be unpacked", "or name the folder itself"
            raise InputError(
                expected=expected, got=reason, path=path, fix=f"pack it again {fix}"
            ) from None
        try:
            yield Path(name)
        except InputError as error:  # which names a folder that the user never saw
            raise InputError(str(error).replace(name, str(path))) from None


def _unpack(path: Path, into: Path) -> None:
    """Unpack an archive; what would leave the folder ends it in a tar, and is kept in by zip."""
    left = min(MOST_BYTES, max(FREE_BYTES, MOST_TIMES * path.stat().st_size))

    def count(size: int) -> None:  # no more can be read of a file than the archive says
        nonlocal left
        left -= size
        if left < 0:
            problem = f"unpacks to over {MOST_TIMES} times its size, as no artifacts do"
            fix = "if it is right, unpack it yourself and name the folder"
            raise InputError(problem, path=path, fix=fix)

    def checked(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        count(max(member.size, tarfile.BLOCKSIZE))
        return tarfile.data_filter(member, folder)

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as zipped:
            count(sum(entry.file_size for entry in zipped.infolist()))
            zipped.extractall(into)
        return
    with contextlib.ExitStack() as opened:
        stream = None
        if path.suffix in (".zst", ".tzst"):
            stream = opened.enter_context(pa.input_stream(str(path), compression="zstd"))
        tar = opened.enter_context(tarfile.open(path, "r|" if stream else "r|*", stream))
        tar.extractall(into, filter=checked)


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
