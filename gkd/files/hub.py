"""Names of models on the Hugging Face Hub, and the download of single files of them.

huggingface_hub does the work: its cache (HF_HOME), its login, its file locks, which let several
processes of a host use one cache. Only listed files are downloaded. Every failure is one line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gkd.errors import InvalidFile, MissingFile, UserError, one_line

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-]+(?:/[\w.-]+)*))?")
_FIRST_T5 = re.compile(r"(t5-(?:small|base|large|3b|11b))(?:@([\w.-]+(?:/[\w.-]+)*))?")
_ADDRESS = re.compile(r"(?!gs:)[a-z0-9+.-]+:/")
# Of a model, as a browser or the file system of huggingface_hub has it.
_PAGE = re.compile(
    r"(?:https?:/+huggingface\.co/|hf:/+)([\w.-]+/[\w.-]+)(?:/(?:tree|blob)/([\w.-]+).*|/)?"
)
_MAIN = "main"
_TIMEOUT = 10  # seconds until the Hub must have answered
_SHORT = 12  # shown digits of a commit


class Unreachable(MissingFile):
    """The Hub cannot be reached, and the cache does not have what is needed."""


def remark(path: str | os.PathLike[str]) -> str:
    """Explains why a missing path was not looked up on the Hub, to end a message.

    Args:
      path: a path that does not exist and is no name of the Hub (`parse_hub_name`).
    """
    if parse_hub_name(f"{os.fspath(path)}@{_MAIN}") is None:
        return ", nor is it the name of a model on the Hugging Face Hub (OWNER/NAME)"
    folder = os.path.dirname(path)
    return (
        f", and as there is a folder {folder} it is not looked up on the Hugging Face Hub: name it "
        f"{path}@{_MAIN} if it lies there"
    )


@dataclasses.dataclass(frozen=True)
class HubName:
    """The name of a model on the Hub.

    Attributes:
      repository: OWNER/NAME, or one of the first T5's names without an owner.
      revision: branch, tag, refs/pr/N or commit.
    """

    repository: str
    revision: str = _MAIN

    def __str__(self) -> str:
        end = "" if self.revision == _MAIN else f"@{self.revision}"
        return self.repository + end


def parse_hub_name(text: str | os.PathLike[str]) -> HubName | None:
    """Parses the name of a model on the Hub, OWNER/NAME or OWNER/NAME@REVISION.

    An existing path is never a name of the Hub. Nor is a path in an existing folder, unless it has
    a revision: a mistyped path of a run is not looked up.

    Args:
      text: a name or a path.

    Returns:
      The name; None for everything else.

    >>> parse_hub_name("google/flan-t5-small@refs/pr/2")
    HubName(repository='google/flan-t5-small', revision='refs/pr/2')
    >>> parse_hub_name("/path/to/flan-t5-small"), parse_hub_name("student")
    (None, None)
    """
    text = os.fspath(text)
    text = text[:-1] if text.endswith("/") else text
    match = _NAME.fullmatch(text) or _FIRST_T5.fullmatch(text)
    if match is None or ".." in text or os.path.exists(text):
        return None
    repository, revision = match.groups()
    folder = os.path.dirname(repository)
    if revision is None and folder and os.path.isdir(folder):
        return None
    return HubName(repository, revision or _MAIN)


def refuse_address(text: str | os.PathLike[str]) -> None:
    """Refuses an address, such as that of a model's page, in place of a name or a path.

    Args:
      text: a name or a path; gs:// is a path.

    Raises:
      FileNotFoundError: it is an address.
    """
    text = os.fspath(text)
    if not _ADDRESS.match(text):
        return
    page = _PAGE.fullmatch(text)
    revision = f"@{page[2]}" if page and page[2] else ""
    example = f", e.g. {page[1]}{revision}" if page else ""
    raise MissingFile(
        f"{text} is an address: give a path, or the name of a model on the Hugging Face "
        f"Hub, OWNER/NAME or OWNER/NAME@REVISION{example}"
    )


def is_commit(revision: str) -> bool:
    """Returns True for the hash of a commit, whose files never change."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of one commit of a repository.

    Attributes:
      commit: hash of the commit.
      sizes: size of every file in bytes by name; None where the Hub does not give it.
    """

    commit: str
    sizes: Mapping[str, int | None]


def list_files(name: HubName) -> Listing:
    """Asks the Hub for the files of a repository.

    Args:
      name: the name.

    Returns:
      The commit of the revision, and its files.

    Raises:
      Unreachable: the Hub does not answer.
      FileNotFoundError: there is no such repository or revision, or it may not be read.
    """
    import huggingface_hub

    with _one_line(name):
        info = huggingface_hub.HfApi(library_name="gkd").model_info(
            name.repository, revision=name.revision, timeout=_TIMEOUT, files_metadata=True
        )
    if not info.sha or info.siblings is None:
        raise InvalidFile(f"{name}: the Hugging Face Hub answered without a commit or files")
    return Listing(info.sha, {file.rfilename: file.size for file in info.siblings})


def download(name: HubName, listing: Listing, files: Sequence[str]) -> pathlib.Path:
    """Downloads files of a repository into huggingface_hub's cache, as far as it lacks them.

    Args:
      name: the name.
      listing: the repository's files, from `list_files`.
      files: names of the files that are needed.

    Returns:
      The folder that holds them, named by its commit; it may hold other files too.

    Raises:
      FileNotFoundError: the download failed.
    """
    import huggingface_hub

    missing = [
        file for file in files
        if not isinstance(
            huggingface_hub.try_to_load_from_cache(name.repository, file, revision=listing.commit),
            str,
        )
    ]  # fmt: skip
    if missing:
        size = sum(listing.sizes.get(file) or 0 for file in missing) / 1e6
        print(
            f"gkd: downloading {name.repository}@{listing.commit[:_SHORT]}: {len(missing)} files, "
            f"{size:.1f} MB",
            file=sys.stderr,
        )
    with _one_line(name), _progress_bars():
        folder = huggingface_hub.snapshot_download(
            name.repository,
            revision=name.revision,
            allow_patterns=[re.sub(r"([*?[])", r"[\1]", file) for file in files],
            etag_timeout=_TIMEOUT,
            library_name="gkd",
        )
    return pathlib.Path(folder)


def cached_folder(name: HubName, file: str) -> pathlib.Path | None:
    """Finds the cached folder of a revision without asking the Hub.

    Args:
      name: the name.
      file: name of a file that the folder must hold.

    Returns:
      The folder; None if the cache has none.
    """
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(name.repository, file, revision=name.revision)
    return pathlib.Path(found).parent if isinstance(found, str) else None


@contextlib.contextmanager
def _progress_bars() -> Iterator[None]:
    """Shows huggingface_hub's progress bars in a terminal only."""
    from huggingface_hub import utils

    if sys.stderr.isatty() or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


@contextlib.contextmanager
def _one_line(name: HubName) -> Iterator[None]:
    """Translates the errors of huggingface_hub."""
    from huggingface_hub import errors

    neither = f"{name}: there is no such folder, and"
    others = ("FileMetadataError", "XetDownloadError")  # not in every version
    failures = (errors.HTTPError, *(getattr(errors, e) for e in others if hasattr(errors, e)))
    try:
        yield
    except errors.GatedRepoError as error:
        raise MissingFile(
            f"{neither} the Hugging Face Hub gives this model only to users who have accepted its "
            "conditions: accept them on its page, and log in with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise MissingFile(
            f"{name}: {name.repository} has no revision {name.revision!r} on the Hugging Face Hub"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise MissingFile(
            f"{neither} the Hugging Face Hub has no model of this name that you may read: correct "
            "it, or log in with `hf auth login` if it is private"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise Unreachable(f"{neither} {_unreachable(error.__cause__ or error)}") from error
    except errors.OfflineModeIsEnabled as error:
        raise Unreachable(
            f"{neither} HF_HUB_OFFLINE is set, so that only huggingface_hub's cache is searched"
        ) from error
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", "no status")
        if status in (401, 403):
            raise MissingFile(
                f"{neither} the Hugging Face Hub refuses access ({status}): log in with `hf auth "
                "login`, with an account that may read the model"
            ) from error
        raise Unreachable(
            f"{neither} the Hugging Face Hub answered with an error ({status}): try again later"
        ) from error
    except failures as error:
        raise Unreachable(f"{neither} {_unreachable(error)}") from error
    except errors.HFValidationError as error:
        raise MissingFile(
            f"{neither} it is no name of a model either: {one_line(error)}"
        ) from error
    except (UserError, OSError):
        raise
    except UnicodeEncodeError as error:
        raise Unreachable(
            f"{neither} the token of the Hugging Face Hub (HF_TOKEN, or that of `hf auth login`) "
            "has characters that no token has: correct it"
        ) from error
    except Exception as error:  # addresses and answers that huggingface_hub does not expect
        raise Unreachable(
            f"{neither} no answer of the Hugging Face Hub can be read ({one_line(error)[:160]}): "
            "does the network need a login, or is HF_ENDPOINT mistyped?"
        ) from error


def _unreachable(error: Any) -> str:
    return (
        f"the Hugging Face Hub cannot be reached ({one_line(error)[:160]}): connect this machine, "
        "or download the model elsewhere with `hf download` and give its folder"
    )
