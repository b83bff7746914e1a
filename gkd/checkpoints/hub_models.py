"""Downloads the files of a model of the Hugging Face Hub that are read, and no others."""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Collection

from etils import epath

from gkd.errors import InvalidFile, MissingFile
from gkd.files import hub
from gkd.tensor_files.weight_files import (
    TORCH,
    describe_files,
    find_weights,
    read_places,
    require_torch,
)
from gkd.vocabularies.tokenizer_files import TOKENIZER_FILES

CONFIG_FILE = "config.json"
_DESCRIPTIONS = (CONFIG_FILE, "generation_config.json", *TOKENIZER_FILES)
_LOG = logging.getLogger(__name__)


def local_copy(checkpoint: epath.PathLike) -> tuple[epath.Path, str]:
    """Finds the local folder of a checkpoint, downloading a model of the Hub.

    Args:
      checkpoint: path of a folder, or the name of a model on the Hub, OWNER/NAME[@REVISION]. An
        existing path is never looked up.

    Returns:
      The folder, and OWNER/NAME@COMMIT of a model of the Hub, by which the same weights can be read
      again; '' for other paths.

    Raises:
      FileNotFoundError: neither a folder nor the Hub has it, or the Hub cannot be reached and the
        cache does not hold all of it.
      ValueError: the repository has no weights that are read.
    """
    name = hub.parse_hub_name(checkpoint)
    if name is None:
        hub.refuse_address(checkpoint)
        return epath.Path(checkpoint), ""
    try:
        listing = hub.list_files(name)
    except MissingFile as error:
        if not isinstance(error, hub.Unreachable) and not hub.is_commit(name.revision):
            raise
        folder = _cached(name, error)
    else:
        folder = _download(name, listing)
    return epath.Path(folder), f"{name.repository}@{folder.name}"


def _download(name: hub.HubName, listing: hub.Listing) -> pathlib.Path:
    found = find_weights(listing.sizes)
    if found is not None and CONFIG_FILE not in listing.sizes:
        raise InvalidFile(
            f"{name} on the Hugging Face Hub holds {found[1]} without {CONFIG_FILE}, which "
            "describes the model"
        )
    if found is None:
        raise InvalidFile(
            f"{name} on the Hugging Face Hub holds no model that is read"
            f"{describe_files(listing.sizes)}"
        )
    kind, weights = found
    if kind == TORCH:  # before the download: such files are large
        require_torch(f"{name}: {weights}", f"`{name.repository}@refs/pr/N`")
    files = [file for file in _DESCRIPTIONS if file in listing.sizes]
    folder = hub.download(name, listing, [*files, weights])
    if weights != kind:
        pinned = hub.HubName(name.repository, folder.name)
        hub.download(pinned, listing, _shards(folder, kind, weights))
    return folder


def _shards(folder: pathlib.Path, kind: str, index: str) -> list[str]:
    suffix = pathlib.PurePath(kind).suffix
    return sorted(set(read_places(epath.Path(folder / index), suffix).values()))


def _cached(name: hub.HubName, error: MissingFile) -> pathlib.Path:
    """The cached folder of a model, if it is complete."""
    folder = hub.cached_folder(name, CONFIG_FILE)
    if folder is None:
        raise error
    found = find_weights([path.name for path in folder.iterdir()])
    needed: Collection[str] = ()
    if found is not None and found[1] != found[0]:
        needed = _shards(folder, *found)
    missing = [file for file in needed if not (folder / file).exists()]
    if found is None or missing:
        raise MissingFile(
            f"{error}; huggingface_hub's cache holds only a part of it in {folder}"
        ) from error
    _LOG.warning("%s is read from huggingface_hub's cache, commit %s", name, folder.name)
    return folder
