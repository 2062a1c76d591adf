"""A program of `torch.export` (.pt2): code, and so run only where the user says that he trusts it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from sightline.errors import ModelError
from sightline.models.adapter import Adapter
from sightline.models.given import Finding, Given
from sightline.models.made import made, usual_for


def build_file(path: Path, given: Given) -> Adapter:
    """The network in an exported program, with its modules and their hooks back.

    Raises:
        ModelError: it isn't trusted, can't be opened, or takes something else than one batch of pictures.
    """
    if not given.trust_code:
        raise ModelError(
            f"{path} is an exported program, which is code and could do anything on this computer; it is not opened. Where you "
            "made it yourself: --trust-code (trust_code=True). Safer: save model.state_dict() as safetensors"
        )
    import torch

    try:
        exported = torch.export.load(path)
        module: nn.Module = torch.export.unflatten(exported)
    except Exception as error:  # whatever the program does
        raise ModelError(f"{path} can't be opened as an exported program: {error}") from error
    for one in module.modules():
        name = str(getattr(one, "_ty", ""))  # all that is left of what it was
        kind = getattr(nn, name.rpartition(".")[2], None)
        if isinstance(kind, type) and f"{kind.__module__}.{kind.__qualname__}" == name:
            one.__dict__["stands_for"] = kind
    shapes = [
        tuple(one.meta["val"].shape)
        for one in exported.graph.nodes
        if one.op == "placeholder" and one.name in exported.graph_signature.user_inputs
    ]
    if len(shapes) != 1 or len(shapes[0]) != 4 or not all(isinstance(one, int) for one in shapes[0][1:]):
        raise ModelError(f"{path} takes inputs of shape {shapes}; expected one, (B, 3, H, W), with H and W fixed")
    size = (shapes[0][3], shapes[0][2])
    found = (
        Finding("architecture", f"a program of torch.export, input {shapes[0]}", path.name),
        Finding("weights", "inside the program", path.name),
    )
    return made(
        path.name,
        module,
        given,
        usual_for(size),
        None,
        {"source": "torch.export", "architecture": path.name},
        found,
        usual=True,
    )
