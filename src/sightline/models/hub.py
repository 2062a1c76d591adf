"""`fetched`: the only place that asks the Hugging Face hub for a file."""

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
    from huggingface_hub import constants, get_session, hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, local_files_only=True))
    except Exception:
        pass  # not fetched before
    try:
        # One try: the download itself would repeat it for half a minute.
        get_session().head(constants.ENDPOINT, timeout=10)
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # offline shows as one of a dozen types, depending on where the network ends
        what = "the weights" if file.endswith((".safetensors", ".bin")) else file
        raise ModelError(f"{what} of {wanted} can't be had from the hub ({repository}). {OFFLINE}") from error
