"""Errors that a user can act on, each with the exit code that the command line returns."""

import errno

# What an OSError says of a place that cannot be written, rather than of a defect.
UNWRITABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
    errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG,
}  # fmt: skip


class KvabError(Exception):
    """Base of all expected failures; its text is shown as one line, without a traceback."""

    exit_code = 3

    def __str__(self) -> str:
        """Return one line, whatever was quoted in the text."""
        return " ".join(super().__str__().split())


class InputError(KvabError):
    """A wrong argument, declaration, trace, manifest or run folder.

    The text names the file (and the line or key), what was expected, what came and the mend.
    """

    exit_code = 2


class DependencyError(KvabError):
    """A cluster, or a program or package that a step needs, is missing or failed."""

    exit_code = 3


class GateError(KvabError):
    """The validity gate is red: the runs do not support a verdict."""

    exit_code = 4
