"""The errors that a user can mend: which builtin each one is, and which others are translated."""

import errno
import os

import gin
import jax.errors
import pytest

from gkd import errors

BUILTINS = {
    errors.InvalidValue: ValueError,
    errors.IndivisibleBatch: ValueError,
    errors.InvalidFile: ValueError,
    errors.MissingFile: FileNotFoundError,
    errors.ExistingFile: FileExistsError,
    errors.NotAFolder: NotADirectoryError,
    errors.StorageError: OSError,
    errors.NotFinite: FloatingPointError,
    errors.JobError: ConnectionError,
    errors.MissingPackage: ImportError,
    errors.OutOfMemory: MemoryError,
}


@pytest.mark.parametrize("kind", BUILTINS)
def test_each_is_a_user_error_and_the_builtin_that_callers_expect(kind):
    error = kind("what is wrong: the remedy")
    assert isinstance(error, errors.UserError) and isinstance(error, BUILTINS[kind])
    assert str(error) == "what is wrong: the remedy"
    assert errors.as_user_error(error) is error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES])
def test_an_error_of_storage_is_the_user_s_also_in_the_copy_that_gin_raises(number):
    def fails():
        raise OSError(number, os.strerror(number), "/data/run")

    with gin.unlock_config():  # another test of this process may have configured a verb
        fails = gin.configurable(f"fails_with_{number}", module="tests.errors")(fails)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        fails()
    found = errors.as_user_error(caught.value)
    assert isinstance(found, errors.StorageError)
    assert str(found) == f"[Errno {number}] {os.strerror(number)}: '/data/run'"


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("a"), OSError("no"), ImportError()])
def test_a_plain_error_is_a_mistake_in_the_code(error, capsys):
    assert errors.as_user_error(error) is None
    errors.report(error)
    assert "Error" in capsys.readouterr().err.splitlines()[-2]  # the traceback's last line


def test_memory_that_a_device_lacks_is_known_by_type_and_status():
    message = "RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes"
    found = errors.as_user_error(jax.errors.JaxRuntimeError(message))
    assert isinstance(found, errors.OutOfMemory) and "MICROBATCHES" in str(found)
    assert errors.as_user_error(jax.errors.JaxRuntimeError("INTERNAL: a bug")) is None
    assert errors.as_user_error(RuntimeError(message)) is None
    assert isinstance(errors.as_user_error(MemoryError()), errors.OutOfMemory)
