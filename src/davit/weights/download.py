"""Catalogue entries to verified local files, through the Hugging Face client and its cache."""

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from davit.weights.catalog import WeightEntry
from davit.weights.checkpoint import CheckpointError


def download(entry: WeightEntry) -> Path:
    """Fetch the file of an entry, or find it in the cache, and verify its content.

    HF_HOME says where the cache is, HF_ENDPOINT which hub, HF_HUB_OFFLINE=1 forbids the network.

    Raises:
        OSError: no network, not in the cache while offline, not found, or no space left; one sentence says which.
        CheckpointError: the content is not what the hub announced. The file is deleted, so that a second try downloads.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        path = Path(hf_hub_download(entry.repo, entry.file, revision=entry.revision))
    except HFValidationError as error:
        raise ValueError(f"{entry.name}: {error}") from error
    except Exception as error:  # the client lets errors of its HTTP library through
        raise OSError(f"could not get {entry.name} from {entry.url}: {_reason(error)}") from error
    _verify(entry, path)
    return path


def _reason(error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled) or _offline():
        return "offline mode is on (HF_HUB_OFFLINE) and it is not in the cache; download it once with the network on"
    if isinstance(error, errors.GatedRepoError):
        return "access must be asked for on that page, then log in with `hf auth login`"
    if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)):
        return "the repository or revision does not exist, or is private"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return "the repository does not hold the file"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return "the hub cannot be reached and it is not in the cache; check the network (HF_ENDPOINT names another hub)"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} while writing to the cache (HF_HOME moves it)"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _verify(entry: WeightEntry, path: Path) -> None:
    # The cache links each file to a blob that it names by the hub's SHA-256; a blob may itself link to a shared one.
    blob = path.parent / path.readlink() if path.is_symlink() else path
    announced = entry.sha256 or (blob.name if re.fullmatch(r"[0-9a-f]{64}", blob.name) else None)
    if announced is None:  # a cache without links does not keep the hub's hash
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found == announced:
        return
    for damaged in (path.resolve(), blob, path):
        with suppress(OSError):
            damaged.unlink()
    raise CheckpointError(
        f"{entry.name}: the download is damaged (SHA-256 {found[:12]}..., announced {announced[:12]}...) "
        "and was deleted; try again"
    )
