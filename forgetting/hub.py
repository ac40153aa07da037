"""The hub, when it fails: what to do about it, in words; and a damaged download is not kept for the next try."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

NO_ANSWER = "the hub did not answer, or not in full; try again, what came whole is kept"
DAMAGED = "a file came damaged, and was deleted from the cache; try again"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and what it came from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def advice(error: BaseException) -> str | None:
    """Say what to do about an error of the hub's clients, or ``None`` where it is another kind of error.

    Args:
        error: As transformers or datasets raised it; what it came from is looked at too.
    """
    from huggingface_hub import constants, errors

    chain = list(_chain(error))

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in chain)

    if any_is(errors.GatedRepoError) or any("is a gated dataset" in str(each) for each in chain):
        return "the hub refuses it; accept its terms on its page and log in (hf auth login)"
    if any_is(errors.RepositoryNotFoundError) or any(type(each).__name__ == "DatasetNotFoundError" for each in chain):
        return "the hub has none of that name, or a private one; check the name, or log in (hf auth login)"
    unanswered = any_is(errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if any_is(errors.OfflineModeIsEnabled) or (unanswered and constants.HF_HUB_OFFLINE):
        return "HF_HUB_OFFLINE is set, and it is not in the cache; unset it, or download it first"
    status = [each.response.status_code for each in chain if isinstance(each, errors.HfHubHTTPError)]
    if any(code >= 500 for code in status):
        return f"the hub failed (status {next(code for code in status if code >= 500)}); try again later"
    broken = any("onsistency check failed" in str(each) for each in chain)
    if broken or unanswered or any(map(_in_transport, chain)):
        return NO_ANSWER
    return None


def _in_transport(error: BaseException) -> bool:
    """Whether the connection broke below the hub's client, whichever of httpx's versions that is built on."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


@functools.cache
def bound_waits() -> None:
    """Make the hub's client give up, in this process, on an answer that does not come within HF_HUB_DOWNLOAD_TIMEOUT.

    Some of its requests (what a name stands for) have no limit of their own, and would wait for ever.
    """
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def bounded() -> Any:
        client = default_client_factory()
        client.timeout = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
        return client

    set_client_factory(bounded)


def drop_damaged(kind: Literal["models", "datasets"], name: str) -> int:
    """Delete from the cache what is not what its name says: it would be taken for whole by the next try.

    The cache names a file by its digest: SHA-256 of large files, git's SHA-1 of others.

    Args:
        kind: What is looked for.
        name: ``owner/name``.

    Returns:
        How many files were deleted.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}"
    dropped = 0
    for blob in sorted(folder.glob("blobs/*")):
        if _digest(blob, len(blob.name)) not in (None, blob.name):
            blob.unlink()
            dropped += 1
    for link in folder.glob("snapshots/*/**/*"):
        if link.is_symlink() and not link.exists():
            link.unlink()
    return dropped


def _digest(path: Path, length: int) -> str | None:
    """The digest of a file that has so many hex digits in the hub's cache; ``None`` where it has no known one."""
    if length == 64:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if length == 40:
        content = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return None


def holds_pickles_only(model: str) -> bool:
    """Whether the hub says that a model has weights, and none of them in safetensors."""
    from huggingface_hub import HfApi

    try:
        names = [file.rfilename for file in HfApi().model_info(model).siblings or []]
    except Exception:  # of the hub, which has just failed: it says nothing then
        return False
    pickled = any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names)
    return pickled and not any(name.endswith(".safetensors") for name in names)
