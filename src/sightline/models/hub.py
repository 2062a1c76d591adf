"""`fetched` and `fetched_if_there`: the only place that asks the Hugging Face hub for a file."""

from __future__ import annotations

from pathlib import Path

from sightline.errors import ModelError
from sightline.models.made import OFFLINE


def fetched(repository: str, file: str, wanted: str) -> Path:
    """A file of a repository, from the cache where it was fetched before.

    Args:
        repository: such as "timm/resnet18.a1_in1k".
        file: its name there.
        wanted: the model that the user asked for, for the message.

    Raises:
        ModelError: neither the cache nor the hub gives it.
    """
    found = fetched_if_there(repository, file, wanted)
    if found is None:
        raise ModelError(f"the hub's repository {repository} of {wanted} has no file {file}")
    return found


def fetched_if_there(repository: str, file: str, wanted: str) -> Path | None:
    """The same, or None where the repository is known not to have the file."""
    from huggingface_hub import constants, get_session, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        cached = try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
        if cached is not None:
            return None  # the cache remembers that there is none
    except Exception:
        pass  # a name that the hub can't have; it says so below
    try:
        # One try: the download itself would repeat it for half a minute.
        get_session().head(constants.ENDPOINT, timeout=10)
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # offline shows as one of a dozen types, depending on where the network ends
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return None
        what = "the weights" if file.endswith((".safetensors", ".bin")) else file
        raise ModelError(f"{what} of {wanted} can't be had from the hub ({repository}). {OFFLINE}") from error
