"""Models on the Hugging Face Hub: what a repository of ours holds, and how one is fetched without being trusted.

A repository holds one model, under names that never change: `model.safetensors`, the checkpoint; `config.json`, which
says what it is and has every hash; the card in `README.md` and its numbers in `card.json`; and, where a model was
trained on towers of its makers' own, `backbone.safetensors`. Nothing else is ever downloaded, and none is a pickle.

huggingface_hub keeps what was fetched in its cache, where it scores without a network.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import AgiqaError
from pipeline.extras import NAME
from pipeline.files import file_sha256
from pipeline.layout import MODEL_CARD
from pipeline.model.record import Text, faults

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ResolvedRevision

LIBRARY = NAME
FORMAT = "agiqa-hub-1"
README, CONFIG, CARD = "README.md", "config.json", MODEL_CARD
CHECKPOINT, WEIGHTS = "model.safetensors", "backbone.safetensors"
FILES = (README, CONFIG, CARD, CHECKPOINT, WEIGHTS)
MOST_BYTES = {CONFIG: 1 << 20, CHECKPOINT: 1 << 29, WEIGHTS: 12 << 30}  # towers of 3 billion parameters in float32
PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth", ".skops")
LOGIN = "`hf auth login`, or HF_TOKEN"
_PLACE = re.compile(r"hf:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[A-Za-z0-9][\w./-]*))?")


class HubError(AgiqaError):
    """A model on the Hub that is not there, may not be read or written, or is not what it says."""


@dataclass(frozen=True)
class Place:
    """Where a model lies on the Hub.

    Attributes:
        repo: `owner/name`.
        revision: A branch, a tag or a commit; None: the newest of the main branch.
    """

    repo: str
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> "Place":
        """Return the place that `hf:owner/name` or `hf:owner/name@revision` names.

        Raises:
            HubError: If the text is neither.
        """
        match = _PLACE.fullmatch(text)
        if match is None:
            raise HubError(
                f"{text!r} names no model on the Hub: write hf:OWNER/NAME, or hf:OWNER/NAME@REVISION with a branch, a "
                "tag or a commit"
            )
        return cls(match["repo"], match["revision"])

    def __str__(self) -> str:
        return f"hf:{self.repo}" + (f"@{self.revision}" if self.revision else "")


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Config(BaseModel):
    """What `config.json` must say; what else it says is for people."""

    model_config = ConfigDict(extra="ignore", strict=True)

    format: Literal["agiqa-hub-1"]
    dataset: Text
    method: Text
    files: dict[Literal["model.safetensors", "backbone.safetensors"], _File]

    @model_validator(mode="after")
    def _has_a_checkpoint(self) -> "Config":
        if CHECKPOINT not in self.files:
            raise ValueError(f"files does not name {CHECKPOINT}")
        return self


def api() -> "HfApi":
    """Return huggingface_hub's client, which says who asks."""
    from importlib.metadata import version  # imported here: few need them

    from huggingface_hub import HfApi

    return HfApi(library_name=LIBRARY, library_version=version(LIBRARY))


def fetch(place: str) -> Path:
    """Return a model's checkpoint, downloaded with what it needs, or from this machine's copy of it.

    Args:
        place: `hf:owner/name` or `hf:owner/name@revision`.

    Returns:
        `model.safetensors` in huggingface_hub's cache, its bytes as `config.json` says; `backbone.safetensors` lies
        beside it if it needs that.

    Raises:
        HubError: If there is no such repository or revision, it may not be read, it is out of reach and not in the
            cache, it is no model of ours, or a file is not what `config.json` says.
    """
    where = Place.of(place)
    with explained(where):
        client = api()
        revision = client.resolve_revision(where.repo, revision=where.revision)
        path = _download(client, where, CONFIG, revision)
        config = _config(path, where)
        found = {name: _download(client, where, name, revision) for name in config.files}
    for name, file in found.items():
        if (sha256 := file_sha256(file)) != (said := config.files[name].sha256):
            raise HubError(
                f"{name} of {where} has SHA-256 {sha256}, and its {CONFIG} says {said}: it was tampered with, or "
                f"damaged on the way; delete {file.resolve()} to fetch it anew"
            )
    return found[CHECKPOINT]


def weights_beside(checkpoint: Path) -> Path | None:
    """Return the towers' weights that came with a checkpoint from the Hub, or None."""
    path = checkpoint.with_name(WEIGHTS)  # a cache holds links, so that what they lead to has other neighbours
    return path if path.is_file() else None


def _download(client: "HfApi", place: Place, name: str, revision: "ResolvedRevision") -> Path:
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    commit = revision.resolved
    if isinstance(cached := try_to_load_from_cache(place.repo, name, revision=commit), str):
        return Path(cached)
    try:
        # Asked first, since hf_hub_download tries for half a minute where nothing answers, and takes any size.
        address = hf_hub_url(place.repo, name, revision=commit, endpoint=client.endpoint)
        size = client.get_hf_file_metadata(url=address).size
        if size is not None and size > MOST_BYTES[name]:
            raise HubError(f"{name} of {place} has {size:,} bytes, and {MOST_BYTES[name]:,} are taken at most")
        return Path(client.hf_hub_download(place.repo, name, revision=commit))
    except RemoteEntryNotFoundError:
        held = sorted(file for file in client.list_repo_files(place.repo, revision=commit) if file.endswith(PICKLES))
        pickles = f"; it holds {held[0]}, a pickle, which could run code and is never loaded" if held else ""
        raise HubError(f"{place} holds no {name}, so it is no model that `agiqa push` wrote{pickles}") from None


def _config(path: Path, place: Place) -> Config:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise HubError(f"{CONFIG} of {place} is no JSON ({error}): it is no model that `agiqa push` wrote") from None
    if wrong := faults(Config, values):
        raise HubError(f"{CONFIG} of {place} cannot be trusted: it says {'; '.join(wrong[:3])}")
    return Config.model_validate(values)


@contextmanager
def explained(place: Place, *, writing: bool = False) -> Iterator[None]:
    """Turn what huggingface_hub raises, paragraphs with addresses, into one line that says what to do.

    Args:
        place: That is read or written.
        writing: Which of both.

    Raises:
        HubError: In place of its errors.
    """
    from httpx2 import TransportError
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{place} is open to those alone who accept its terms: do so on its page, then say who you are ({LOGIN})"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{place} does not exist, or is private: check the name; a private one wants a token that may "
            f"{'write' if writing else 'read'} it ({LOGIN})"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{place.repo} has no revision {place.revision!r}: name a branch, a tag or a commit") from error
    except errors.HfHubHTTPError as error:
        status, said = error.response.status_code, " ".join((error.server_message or "").split())
        reason = f"{status}{f': {said}' if said else ''}"
        if status in (401, 403):
            raise HubError(
                f"the Hub does not let you {'write' if writing else 'read'} {place} ({reason}): log in with a token "
                f"that may ({LOGIN})"
            ) from error
        raise HubError(f"the Hub could not answer for {place} ({reason}): try again later") from error
    except (
        errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.RevisionResolutionError, TransportError
    ) as error:  # fmt: skip
        cause = error.__cause__ if isinstance(error, errors.RevisionResolutionError) else error
        offline = isinstance(cause, errors.OfflineModeIsEnabled) or "OfflineMode" in str(error)
        why = "HF_HUB_OFFLINE is set" if offline else type(cause or error).__name__
        raise HubError(
            f"{place}: the Hub cannot be reached ({why})"
            + ("" if writing else ", and this machine holds no copy of it: fetch it once with a network")
        ) from error
