"""Errors that a user can act on, each with the exit code that the command line returns."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

# What an OSError says of a place that cannot be written, rather than of a defect, and what to do.
UNWRITABLE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "name a place that you may write"),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG), "name another place"
    ),
}
# The extra of kvab that brings a package.
EXTRAS = {
    **dict.fromkeys(("aisimulate", "aisimulate_core", "dynamo"), "simulate"),
    **dict.fromkeys(("aiperf", "httpx", "psutil", "tokenizers"), "live"),
    **dict.fromkeys(("kubernetes", "websocket"), "cluster"),
}


def remedy(error: OSError) -> str:
    """Return what to do about a place that cannot be written."""
    return UNWRITABLE.get(error.errno or 0, "name another place")


def lacking(text: str) -> str | None:
    """Return what to do about a module that Python did not find, None if kvab brings it always."""
    module = re.search(r"No module named '(\w+)", text)
    if not module or module[1] not in EXTRAS:
        return None
    return (
        f"the package {module[1]} is not installed; run `make env`, or install kvab with its extra "
        f"`{EXTRAS[module[1]]}`"
    )


class KvabError(Exception):
    """Base of all expected failures; its text is shown as one line, without a traceback."""

    exit_code = 3

    def __str__(self) -> str:
        """Return one line, whatever was quoted in the text."""
        return " ".join(super().__str__().split())


@dataclass(eq=False)
class InputError(KvabError):
    """A wrong argument, declaration, trace, manifest or run folder.

    Its line is ``path:line: key: expected X, got Y; fix``, of which only what is known is written.

    Parameters
    ----------
    problem : str
        What is wrong, where ``expected`` and ``got`` cannot say it.
    expected, got : str
        What should be there, and what is.
    path, line, key : Path or str, int, str
        The file, the line and the key in it.
    fix : str
        What to do.
    """

    exit_code = 2
    problem: str = ""
    _: KW_ONLY
    expected: str = ""
    got: str | None = ""
    path: Path | str = ""
    line: int | None = None
    key: str = ""
    fix: str = ""

    def __str__(self) -> str:
        """Return the one line, also where the place was added after the error was raised."""
        wanted = f"expected {self.expected}" if self.expected else ""
        what = self.problem or ", got ".join(filter(None, (wanted, self.got)))
        where = f"{self.path}:{self.line}" if self.line else f"{self.path}"
        text = ": ".join(filter(None, (where, self.key, what)))
        return " ".join((f"{text}; {self.fix}" if self.fix else text).split())


class DependencyError(KvabError):
    """A cluster, or a program or package that a step needs, is missing or failed."""


class GateError(KvabError):
    """The validity gate is red: the runs do not support a verdict."""

    exit_code = 4


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Reject, with what to do, a path that turns out to be one that cannot be written.

    Raises
    ------
    InputError
        Where an OSError was raised.
    """
    try:
        yield
    except OSError as error:
        problem = f"cannot write here ({error.strerror})"
        raise InputError(problem, path=path, fix=remedy(error)) from None
