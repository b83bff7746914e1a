"""Translates gs:// paths to mounts of Cloud Storage FUSE below GKD_BUCKETS, and ~/ to the home.

Runs append to files and rename folders, which a mount supports and objects in a bucket do not.
Therefore gs://NAME/path means GKD_BUCKETS/NAME/path everywhere. The launch scripts mount the
buckets that a command names. A shell leaves the ~ of `--gin.MODEL_DIR="'~/runs/a'"` as it is.
"""

from __future__ import annotations

import os
from typing import Any

from gkd.errors import InvalidValue, MissingFile

ENVIRONMENT = "GKD_BUCKETS"  # folder with one mount per bucket, named like the bucket
SCHEME = "gs://"
_ALSO = ("GKD_DATA", "GKD_VOCABULARY")  # environment variables that name files


def local(path: str) -> str:
    """Translates a gs:// path to a path in the bucket's mount, and ~/ to the home folder.

    Args:
      path: any path; other paths are returned unchanged.

    Raises:
      FileNotFoundError: the bucket is not mounted.
      ValueError: the path leaves the bucket.
    """
    if path.startswith("~/"):
        return os.path.expanduser(path)
    if not path.startswith(SCHEME):
        return path
    bucket, _, rest = path.removeprefix(SCHEME).partition("/")
    if rest.startswith("/") or ".." in rest.split("/"):
        raise InvalidValue(
            f"{path} is no place in a bucket: write gs://BUCKET/NAME, without // or .."
        )
    root = os.environ.get(ENVIRONMENT, "")
    folder = os.path.join(root, bucket)
    if not root or not bucket or not os.path.isdir(folder):
        where = f"{folder} is no folder" if root else f"{ENVIRONMENT} is not set"
        raise MissingFile(
            f"{path}: bucket {bucket!r} is not mounted ({where}): mount it, `gcsfuse "
            f"--implicit-dirs {bucket} FOLDER/{bucket}`, and set {ENVIRONMENT}=FOLDER; "
            "launch/tpu_vm.sh and gke_xpk.sh do both"
        )
    return os.path.join(folder, rest)


def local_in(value: Any) -> Any:
    """Translates every gs:// and ~/ path inside a nested value, see `local`.

    Args:
      value: any value of strings, dictionaries, lists and tuples.
    """
    if isinstance(value, str):
        return local(value)
    if isinstance(value, dict):
        return {key: local_in(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(local_in, value))
    return value


def translate_environment() -> None:
    """Translates gs:// paths in the environment variables GKD_DATA and GKD_VOCABULARY."""
    for name in _ALSO:
        if name in os.environ:
            os.environ[name] = local(os.environ[name])
