"""Errors that a user can act on, each with the exit code that the command line returns."""

import errno
import re

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
    found = re.search(r"No module named '(\w+)", text)
    if not found or found[1] not in EXTRAS:
        return None
    return (
        f"the package {found[1]} is not installed; run `make env`, or install kvab with its extra "
        f"`{EXTRAS[found[1]]}`"
    )


class KvabError(Exception):
    """Base of all expected failures; its text is shown as one line, without a traceback."""

    exit_code = 3

    def __str__(self) -> str:
        """Return one line, whatever was quoted in the text."""
        return " ".join(super().__str__().split())


class InputError(KvabError):
    """A wrong argument, declaration, trace, manifest or run folder.

    The text names the file (and the line or key), what was expected, what came and the fix.
    """

    exit_code = 2


class DependencyError(KvabError):
    """A cluster, or a program or package that a step needs, is missing or failed."""

    exit_code = 3


class GateError(KvabError):
    """The validity gate is red: the runs do not support a verdict."""

    exit_code = 4
