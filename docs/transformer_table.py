"""Writes the table of transformer families in docs/transformers.md: python docs/transformer_table.py.

Of each family of timm one small member, with random weights; a test goes through the same list.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sightline
from sightline.errors import SightlineError
from sightline.models.layers import choose

HERE = Path(__file__).parent
BEGIN, END = "<!-- table: python docs/transformer_table.py -->\n", "<!-- end of table -->\n"
# family: (name in timm, input (height, width), settings that keep it small)
FAMILIES: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "ViT, class token": ("vit_tiny_patch16_224", (224, 224), {}),
    "ViT, wider than high": ("vit_tiny_patch16_224", (96, 160), {"img_size": (96, 160)}),
    "ViT, other patch size": ("vit_medium_patch32_clip_224", (224, 224), {"depth": 3}),
    "ViT, mean of patches": ("vit_medium_patch16_gap_240", (240, 240), {"depth": 3}),
    "ViT, relative positions": ("vit_relpos_small_patch16_224", (224, 224), {"depth": 3}),
    "ViT behind a ResNet": ("vit_tiny_r_s16_p8_224", (224, 224), {}),
    "DeiT, distilled": ("deit_tiny_distilled_patch16_224", (224, 224), {}),
    "DeiT III": ("deit3_small_patch16_224", (224, 224), {"depth": 3}),
    "DINOv2, registers": ("vit_small_patch14_reg4_dinov2", (224, 224), {"depth": 3, "img_size": 224}),
    "DINOv3": ("vit_small_patch16_dinov3", (224, 224), {"depth": 3}),
    "EVA-02": ("eva02_tiny_patch14_224", (224, 224), {"depth": 3}),
    "BEiT": ("beit_base_patch16_224", (224, 224), {"depth": 2, "embed_dim": 192, "num_heads": 3}),
    "BEiT v2": ("beitv2_base_patch16_224", (224, 224), {"depth": 2, "embed_dim": 192, "num_heads": 3}),
    "SigLIP tower": ("vit_base_patch16_siglip_224", (224, 224), {"depth": 2, "embed_dim": 192, "num_heads": 3}),
    "SAM's ViT": ("samvit_base_patch16_224", (224, 224), {"depth": 3, "embed_dim": 192, "num_heads": 3}),
    "NaFlexViT": ("naflexvit_base_patch16_gap", (224, 224), {"depth": 2, "embed_dim": 192, "num_heads": 3}),
    "FlexiViT": ("flexivit_small", (240, 240), {"depth": 3}),
    "CaiT": ("cait_xxs24_224", (224, 224), {"depth": 4}),
    "CoaT": ("coat_lite_tiny", (224, 224), {}),
    "CoAtNet": ("coatnet_nano_rw_224", (224, 224), {}),
    "ConViT": ("convit_tiny", (224, 224), {}),
    "CrossViT": ("crossvit_tiny_240", (240, 240), {}),
    "DaViT": ("davit_tiny", (224, 224), {}),
    "EdgeNeXt": ("edgenext_xx_small", (256, 256), {}),
    "EfficientFormer": ("efficientformer_l1", (224, 224), {}),
    "EfficientFormerV2": ("efficientformerv2_s0", (224, 224), {}),
    "EfficientViT (MIT)": ("efficientvit_b0", (224, 224), {}),
    "EfficientViT (MSRA)": ("efficientvit_m0", (224, 224), {}),
    "FastViT": ("fastvit_sa12", (256, 256), {}),
    "FocalNet": ("focalnet_tiny_srf", (224, 224), {}),
    "GCViT": ("gcvit_xxtiny", (224, 224), {}),
    "Hiera": ("hiera_tiny_224", (224, 224), {"stages": (1, 1, 2, 1)}),
    "LeViT": ("levit_128s", (224, 224), {}),
    "MambaOut": ("mambaout_femto", (224, 224), {"depths": (1, 1, 2, 1)}),
    "MaxViT": ("maxvit_pico_rw_256", (256, 256), {}),
    "MetaFormer (CAFormer)": ("caformer_s18", (224, 224), {}),
    "MetaFormer (PoolFormer)": ("poolformer_s12", (224, 224), {}),
    "MLP-Mixer": ("mixer_s32_224", (224, 224), {}),
    "gMLP": ("gmlp_ti16_224", (224, 224), {}),
    "ResMLP": ("resmlp_12_224", (224, 224), {}),
    "MobileViT": ("mobilevit_xxs", (256, 256), {}),
    "MViTv2": ("mvitv2_tiny", (224, 224), {}),
    "NesT": ("nest_tiny", (224, 224), {}),
    "NextViT": ("nextvit_small", (224, 224), {}),
    "PiT": ("pit_ti_224", (224, 224), {}),
    "PVTv2": ("pvt_v2_b0", (224, 224), {}),
    "RepViT": ("repvit_m0_9", (224, 224), {}),
    "Sequencer": ("sequencer2d_s", (224, 224), {"layers": (1, 1, 2, 1)}),
    "SHViT": ("shvit_s1", (224, 224), {}),
    "SwiftFormer": ("swiftformer_xs", (224, 224), {}),
    "Swin": ("swin_tiny_patch4_window7_224", (224, 224), {"depths": (1, 1, 2, 1)}),
    "Swin v2": ("swinv2_tiny_window8_256", (256, 256), {"depths": (1, 1, 2, 1)}),
    "Swin v2 CR": ("swinv2_cr_tiny_ns_224", (224, 224), {"depths": (1, 1, 2, 1)}),
    "TinyViT": ("tiny_vit_5m_224", (224, 224), {}),
    "TNT": ("tnt_s_legacy_patch16_224", (224, 224), {"depth": 3}),
    "Twins": ("twins_pcpvt_small", (224, 224), {"depths": (1, 1, 2, 1)}),
    "Visformer": ("visformer_tiny", (224, 224), {}),
    "ViTamin": ("vitamin_small_224", (224, 224), {}),
    "VOLO": ("volo_d1_224", (224, 224), {}),
    "XCiT": ("xcit_nano_12_p16_224", (224, 224), {}),
}


def built(name: str, size: tuple[int, int], settings: dict[str, Any]) -> tuple[nn.Module, Tensor]:
    """A small network with seeded random weights and ten classes, and an input."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10, **settings)
    norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    if norms:  # random weights let the signal die out unless the statistics are those of some pictures
        for one in norms:
            one.momentum = None
        if hasattr(model, "distilled_training"):
            model.set_distilled_training(False)
        with torch.no_grad():
            model.train()(torch.rand(4, 3, *size))
    for one in model.modules():  # scales of branches that start at next to nothing would hide every place
        for name, parameter in one.named_parameters(recurse=False):
            tiny = parameter.dim() == 1 and float(parameter.detach().abs().max()) < 1e-3
            if tiny and name != "bias" and "Norm" not in type(one).__name__:
                nn.init.constant_(parameter, 0.1)
    return model.eval(), torch.rand(1, 3, *size)


def row(family: str) -> list[str]:
    """The cells of one family, by running it."""
    name, size, settings = FAMILIES[family]
    model, x = built(name, size, settings)
    adapter = sightline.adapt(model)
    try:
        layer, _ = choose(model, x)
        seen = sightline.capture(x, adapter, layer=layer)
        h, w = sightline.attribute(seen, adapter, target=1).shape[1:]
        cells = [f"`{layer}`", f"{h} x {w}", held(seen)]
    except SightlineError as error:
        cells = [f"refused: {error}", "", ""]
    try:
        sightline.attribute(x, adapter, method="attention-rollout", target=1)
        attention = "yes"
    except SightlineError as error:
        attention = f"refused: {reason(str(error))}"
    return [family, f"`{name}`", *cells, attention]


def held(seen: sightline.Capture) -> str:
    form = seen.layout
    if form is None:
        return "maps"
    before = f", {form.before} before" if form.before else ""
    return f"{form.kind}{before}{f', {form.after} behind' if form.after else ''}"


def reason(message: str) -> str:
    for word, short in {
        "windows (": "windows",
        "attend to": "not all to all",
        "computes no attention": "no attention",
        "tokens first and": "the number of tokens changes",
        "no such tokens lie": "tokens on no grid",
    }.items():
        if word in message:
            return short
    return message


def line(family: str) -> str:
    return "| " + " | ".join(row(family)) + " |"


def table() -> str:
    lines = [
        "| family | model in timm | layer | grid | what holds it | attention methods |",
        "|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        lines.append(line(family))
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    page = HERE / "transformers.md"
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    page.write_text(before + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")
