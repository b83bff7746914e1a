"""Which errors a user can mend, and how each is printed: one line, on stderr."""

from __future__ import annotations

import dis
import errno
import os
import sys
import traceback

# What the caller can put right, wherever it is raised, or where GKD raises it on purpose. All
# else is a mistake in the code and keeps its traceback.
EXPECTED_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError)
# A read-only or full disk, a quota, a name too long, a folder in place of a file, a lost mount.
EXPECTED_NUMBERS = {
    errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP,
    errno.EIO, errno.ESTALE, errno.EFBIG, errno.ENOTEMPTY, errno.EMFILE, errno.ENXIO,
    errno.ENOTCONN, errno.ENOTSUP,
}  # fmt: skip
EXPECTED_FROM_GKD = (ValueError, OSError, FloatingPointError)


def one_line(error: BaseException) -> str:
    """An exception's message without the call trail that gin appends, on one line."""
    message = str(error).partition("\n  In call to configurable")[0]
    return " ".join(message.split()) or type(error).__name__


def is_expected(error: BaseException) -> bool:
    """Whether the message alone tells the caller what to do."""
    if isinstance(error, EXPECTED_ERRORS) or _is_out_of_memory(error):
        return True
    if isinstance(error, OSError) and _is_of_storage(error):
        return True
    if not isinstance(error, EXPECTED_FROM_GKD):
        return False
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    by_gkd = last.tb_frame.f_globals.get("__name__", "").split(".")[0] == "gkd"
    # A `raise` statement, not a call into C code (NumPy's reshape) that failed.
    return by_gkd and last.tb_frame.f_code.co_code[last.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _is_of_storage(error: OSError) -> bool:
    """Whether an error has an expected number, also where gin raises a copy that lacks it."""
    if error.errno in EXPECTED_NUMBERS:
        return True
    return any(str(error).startswith(f"[Errno {number}] ") for number in EXPECTED_NUMBERS)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or a device had no room for what was asked for."""
    is_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (is_jax and "RESOURCE_EXHAUSTED" in str(error))


def report(error: BaseException, expected: bool) -> None:
    """Prints an error: one line, and its traceback where it is a mistake in the code."""
    if not expected or os.environ.get("GKD_TRACEBACK") == "1":
        traceback.print_exception(error)
    more = ": use a smaller batch, shorter sequences, more MICROBATCHES or a smaller model"
    text = one_line(error) + (more if _is_out_of_memory(error) else "")
    print(f"gkd: error: {text}", file=sys.stderr)
