"""gs:// paths: a bucket is a folder, mounted with Cloud Storage FUSE below GKD_BUCKETS.

Runs append to files and rename folders, which objects in a bucket cannot do and a mount can: so
gs://NAME/path means GKD_BUCKETS/NAME/path, everywhere. The launch scripts mount what a command
names.
"""

from __future__ import annotations

import os
from typing import Any

from gkd.errors import MissingFile

ENVIRONMENT = "GKD_BUCKETS"  # the folder with a mount for each bucket, by the bucket's name
SCHEME = "gs://"
_ALSO = ("GKD_DATA", "GKD_VOCABULARY")  # environment variables that name files


def local(path: str) -> str:
    """The path of a file in a bucket's mount; of any other file, the path as it is.

    Raises:
      FileNotFoundError: the bucket is not mounted.
    """
    if not path.startswith(SCHEME):
        return path
    bucket, _, rest = path.removeprefix(SCHEME).partition("/")
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
    """A value with every gs:// path inside it, however nested, as `local` gives it."""
    if isinstance(value, str):
        return local(value)
    if isinstance(value, dict):
        return {key: local_in(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(local_in, value))
    return value


def translate_environment() -> None:
    """Lets the environment's GKD_DATA and GKD_VOCABULARY be gs:// paths."""
    for name in _ALSO:
        if name in os.environ:
            os.environ[name] = local(os.environ[name])
