"""Errors that a user can mend: their classes, and how every error is printed.

A `UserError` is printed as one line that names the thing, its value and the remedy. Everything else
is a mistake in the code and keeps its traceback. Each class is also the builtin exception that a
Python caller expects.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback


class UserError(Exception):
    """An error whose message alone tells the user what to change."""


class InvalidValue(UserError, ValueError):
    """A setting, an argument or a combination of them that is refused."""


class IndivisibleBatch(InvalidValue):
    """A batch whose rows do not divide over the devices and microbatches."""


class InvalidFile(UserError, ValueError):
    """A file or checkpoint whose content is damaged, incomplete or of another kind."""


class MissingFile(UserError, FileNotFoundError):
    """A path at which nothing lies, or not what is needed."""


class ExistingFile(UserError, FileExistsError):
    """A path that something else has already."""


class NotAFolder(UserError, NotADirectoryError):
    """A file where a folder is needed."""


class StorageError(UserError, OSError):
    """A file system that refuses to read or write: full, read-only, not permitted, lost."""


class NotFinite(UserError, FloatingPointError):
    """NaN or infinity in a loss, in gradients, in parameters or in probabilities."""


class JobError(UserError, ConnectionError):
    """A process of the job that cannot be reached."""


class MissingPackage(UserError, ImportError):
    """An optional package that is not installed."""


class OutOfMemory(UserError, MemoryError):
    """A host or a device without room for a program or its arrays."""


_FILE_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError)
# A read-only or full disk, a quota, a name too long, a folder in place of a file, a lost mount.
_STORAGE_NUMBERS = {
    errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP,
    errno.EIO, errno.ESTALE, errno.EFBIG, errno.ENOTEMPTY, errno.EMFILE, errno.ENXIO,
    errno.ENOTCONN, errno.ENOTSUP,
}  # fmt: skip


def as_user_error(error: BaseException) -> UserError | None:
    """Translates the exceptions of Python and JAX that any line of code can meet.

    Args:
      error: a caught exception.

    Returns:
      The same error if it is a `UserError`; a `StorageError` or `OutOfMemory` with its message
      where the machine is the cause; None for a mistake in the code.
    """
    if isinstance(error, UserError):
        return error
    if _is_out_of_memory(error):
        remedy = "use a smaller batch, shorter sequences, more MICROBATCHES or a smaller model"
        return OutOfMemory(f"{one_line(error)}: {remedy}")
    if isinstance(error, _FILE_ERRORS) or _number(error) in _STORAGE_NUMBERS:
        return StorageError(one_line(error))
    return None


def _number(error: BaseException | None) -> int | None:
    """Returns an OSError's errno, also that of the copy without one which gin raises instead."""
    while isinstance(error, OSError):
        if error.errno is not None:
            return error.errno
        error = error.__context__
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    """Returns whether Python, NumPy or a device had no room for what was asked for.

    XLA has one exception type for all its failures; only the status code that begins its message
    distinguishes them.
    """
    if isinstance(error, MemoryError):
        return True
    jax_errors = sys.modules.get("jax.errors")  # not imported: then JAX did not raise this
    is_jax = jax_errors is not None and isinstance(error, jax_errors.JaxRuntimeError)
    return is_jax and "RESOURCE_EXHAUSTED" in str(error)


def one_line(error: BaseException) -> str:
    """Returns an exception's message on one line, without the call trail that gin appends.

    >>> one_line(ValueError("13 steps:\\n  choose another number"))
    '13 steps: choose another number'
    >>> one_line(KeyError())
    'KeyError'
    """
    message = str(error).partition("\n  In call to configurable")[0]
    return " ".join(message.split()) or type(error).__name__


def report(error: BaseException) -> None:
    """Prints an error to stderr: one line, after its traceback where it is a mistake in the code.

    GKD_TRACEBACK=1 prints the traceback of every error.
    """
    mendable = as_user_error(error)
    if mendable is None or os.environ.get("GKD_TRACEBACK") == "1":
        traceback.print_exception(error)
    print(f"gkd: error: {one_line(mendable or error)}", file=sys.stderr)
