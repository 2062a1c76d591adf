"""Writes the table of docs/zoo.md: python docs/zoo.py.

One small member, or several, of every module of timm that registers models, with random weights. tests/docs/test_zoo.py goes
through the same list: it checks that no module is missing and that each grid is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sightline
from sightline.errors import SightlineError

PAGE = Path(__file__).parent / "zoo.md"
BEGIN, END = "<!-- table: python docs/zoo.py -->\n", "<!-- end of table -->\n"


@dataclass(frozen=True)
class Member:
    """One network of a family.

    Attributes:
        model: its name in timm.
        size: of the input, (height, width); not square wherever the network takes it, so that no axis passes for the other.
        settings: what keeps it small.
        aside: why a change of the picture may be seen in the cell beside; without a reason it must be seen in its own.
        unchecked: why no change can be followed.
    """

    model: str
    size: tuple[int, int] = (64, 128)
    settings: dict[str, Any] = field(default_factory=dict)
    aside: str = ""
    unchecked: str = ""


SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 192, "num_heads": 3}
FAMILIES: dict[str, Member] = {
    "BEiT": Member("beit_base_patch16_224", settings={"img_size": (64, 128), **SMALL}),
    "BEiT v2": Member("beitv2_base_patch16_224", settings={"img_size": (64, 128), **SMALL}),
    "BotNet": Member("eca_botnext26ts_256", settings={"img_size": (64, 128)}),
    "HaloNet": Member("eca_halonext26ts", (256, 256)),
    "LambdaNet": Member("lambda_resnet26t"),
    "RepVGG": Member("repvgg_a0"),
    "MobileOne": Member("mobileone_s0", (64, 128)),
    "GENet": Member("gernet_s"),
    "ResNeXt": Member("resnext26ts"),
    "CaiT": Member("cait_xxs24_224", settings={"img_size": (64, 128), "depth": 4}),
    "CoaT": Member("coat_lite_tiny", (64, 128), {"img_size": (64, 128)}),
    "ConViT": Member("convit_tiny", (96, 96), {"img_size": 96, "depth": 4, "local_up_to_layer": 2}),
    "ConvMixer": Member("convmixer_768_32", (28, 56)),
    "ConvNeXt": Member("convnext_atto"),
    "ConvNeXt V2": Member("convnextv2_atto"),
    "CPUBone": Member("cpubone_nano", (96, 160)),
    "CrossViT": Member("crossvit_tiny_240", (120, 120), {"img_size": 120}),
    "CSATv2": Member("csatv2", (128, 256)),
    "CSPDarknet": Member("cs3darknet_focus_s"),
    "Darknet": Member("darknet17"),
    "CSPNeXt": Member("cspnext_tiny", (128, 192)),
    "DaViT": Member("davit_tiny", settings={"depths": (1, 1, 1, 1)}),
    "DeepSeek's ViT": Member("deepseek_vit_412m", (56, 112), SMALL),
    "DeiT": Member("deit_tiny_patch16_224", settings={"img_size": (64, 128), "depth": 3}),
    "DeiT, distilled": Member("deit_tiny_distilled_patch16_224", settings={"img_size": (64, 128), "depth": 3}),
    "DeiT III": Member("deit3_small_patch16_224", settings={"img_size": (64, 128), "depth": 3}),
    "DenseNet": Member("densenet121"),
    "DLA": Member("dla46_c"),
    "DPN": Member("dpn48b"),
    "EdgeNeXt": Member("edgenext_xx_small"),
    "EfficientFormer": Member("efficientformer_l1", (224, 224), {"depths": (1, 1, 1, 2)}),
    "EfficientFormerV2": Member("efficientformerv2_s0", settings={"img_size": (64, 128)}),
    "EfficientNet": Member("efficientnet_b0"),
    "EfficientNetV2": Member("efficientnetv2_rw_t"),
    "MobileNetV2": Member("mobilenetv2_050"),
    "MnasNet": Member("mnasnet_small"),
    "MixNet": Member("mixnet_s"),
    "TinyNet": Member("tinynet_e"),
    "FBNet": Member("fbnetc_100"),
    "EfficientViM": Member("efficientvim_m1", (128, 256)),
    "EfficientViT (MIT)": Member(
        "efficientvit_b0", unchecked="with random weights its linear attention drowns every place in the mean of all"
    ),
    "EfficientViT (MSRA)": Member("efficientvit_m0", (128, 256)),
    "EVA-02": Member("eva02_tiny_patch14_224", (56, 112), {"img_size": (56, 112), "depth": 3}),
    "DINOv3": Member("vit_small_patch16_dinov3", settings={"depth": 3}),
    "Perception Encoder": Member("vit_pe_core_tiny_patch16_384", settings={"img_size": (64, 128), "depth": 3}),
    "FasterNet": Member("fasternet_t0"),
    "FastViT": Member("fastvit_t8", (64, 128)),
    "FastViT with attention": Member("fastvit_sa12", (64, 128)),
    "FocalNet": Member("focalnet_tiny_srf", (64, 128)),
    "GCViT": Member("gcvit_xxtiny", settings={"img_size": (64, 128)}),
    "Gemma's ViT": Member("gemma4_vit_167m", (96, 144), SMALL),
    "GhostNet": Member("ghostnet_050"),
    "HardCoRe-NAS": Member("hardcorenas_b"),
    "HGNet": Member("hgnetv2_b0"),
    "Hiera": Member("hiera_tiny_224", settings={"img_size": (64, 128), "stages": (1, 1, 2, 1)}),
    "Hiera of SAM 2": Member("hieradet_small", settings={"stages": (1, 1, 2, 1)}),
    "Hiera of SAM 2, backbone": Member("sam2_hiera_tiny", settings={"stages": (1, 1, 2, 1)}),
    "HRNet": Member("hrnet_w18_small"),
    "iFormer": Member("iformer_t"),
    "InceptionNeXt": Member("inception_next_atto"),
    "Inception-ResNet": Member("inception_resnet_v2", (128, 192)),
    "Inception v3": Member("inception_v3", (128, 192)),
    "Inception v4": Member("inception_v4", (128, 192)),
    "LCNetV2": Member("lcnetv2_small"),
    "LeViT": Member("levit_128s", settings={"img_size": (64, 128)}),
    "LowFormer": Member("lowformer_b0"),
    "MambaOut": Member("mambaout_femto", settings={"depths": (1, 1, 2, 1)}),
    "MaxViT": Member("maxvit_pico_rw_256", settings={"img_size": (64, 128)}),
    "CoAtNet": Member("coatnet_pico_rw_224", settings={"img_size": (64, 128)}),
    "PoolFormer": Member("poolformer_s12", aside="it pools over neighbours again and again"),
    "CAFormer": Member("caformer_s18", (64, 128)),
    "ConvFormer": Member("convformer_s18", (64, 128)),
    "MLP-Mixer": Member("mixer_s32_224", settings={"img_size": (64, 128)}),
    "gMLP": Member("gmlp_ti16_224", settings={"img_size": (64, 128)}),
    "ResMLP": Member("resmlp_12_224", settings={"img_size": (64, 128)}),
    "MobileNetV3": Member("mobilenetv3_small_050"),
    "MobileNetV4": Member("mobilenetv4_conv_small_035"),
    "LCNet": Member("lcnet_075"),
    "FBNetV3": Member("fbnetv3_b"),
    "MobileNetV5": Member("mobilenetv5_base", (64, 96)),
    "MobileViT": Member("mobilevit_xxs"),
    "MobileViT v2": Member("mobilevitv2_050"),
    "MViTv2": Member("mvitv2_tiny", (128, 128), {"img_size": 128}),
    "NaFlexViT": Member("naflexvit_base_patch16_gap", settings=SMALL),
    "NASNet": Member("nasnetalarge", settings={"num_features": 288}),
    "NesT": Member("nest_tiny", (64, 64), {"img_size": 64}),
    "NextViT": Member("nextvit_small", (64, 128)),
    "NFNet": Member("test_nfnet"),
    "NF-RegNet": Member("nf_regnet_b0"),
    "PiT": Member("pit_ti_224", settings={"img_size": (64, 128)}),
    "PNASNet": Member("pnasnet5large", (64, 128), aside="every cell of it pools with padding"),
    "PVTv2": Member("pvt_v2_b0"),
    "Qwen3's ViT": Member("qwen3_vit_88m", settings=SMALL),
    "RDNet": Member("rdnet_tiny"),
    "RegNetX": Member("regnetx_002"),
    "RegNetY": Member("regnety_002"),
    "RepGhost": Member("repghostnet_050"),
    "RepViT": Member("repvit_m0_9"),
    "Res2Net": Member("res2net50_14w_8s", settings={"layers": (1, 1, 1, 1)}),
    "ResNeSt": Member("resnest14d"),
    "ResNet": Member("resnet18"),
    "SE-ResNet": Member("seresnet18"),
    "ResNetV2": Member("resnetv2_18"),
    "BiT": Member("resnetv2_50x1_bit", (64, 128)),
    "ReXNet": Member("rexnet_100"),
    "SelecSLS": Member("selecsls42", (128, 192)),
    "SENet": Member("legacy_seresnet18"),
    "Sequencer": Member("sequencer2d_s", (112, 168), {"layers": (1, 1, 2, 1)}),
    "SHViT": Member("shvit_s1", (128, 256)),
    "SKNet": Member("skresnet18"),
    "StarNet": Member("starnet_s050"),
    "SwiftFormer": Member("swiftformer_xs"),
    "Swin": Member("swin_tiny_patch4_window7_224", settings={"img_size": (64, 128), "depths": (1, 1, 2, 1)}),
    "Swin v2": Member("swinv2_tiny_window8_256", settings={"img_size": (64, 128), "depths": (1, 1, 2, 1)}),
    "Swin v2 CR": Member("swinv2_cr_tiny_ns_224", settings={"img_size": (64, 128), "depths": (1, 1, 2, 1)}),
    "TinyViT": Member("tiny_vit_5m_224"),
    "TNT": Member("tnt_s_legacy_patch16_224", settings={"img_size": (64, 128), "depth": 3}),
    "TResNet": Member("tresnet_m", (64, 128)),
    "Twins-PCPVT": Member("twins_pcpvt_small", settings={"depths": (1, 1, 2, 1)}),
    "Twins-SVT": Member("twins_svt_small", settings={"depths": (1, 1, 2, 1)}),
    "VGG": Member("vgg11", settings={"mlp_ratio": 0.05}),
    "Visformer": Member("visformer_tiny", (128, 192), {"img_size": (128, 192)}),
    "ViT, class token": Member("vit_tiny_patch16_224", settings={"img_size": (64, 128), "depth": 3}),
    "ViT, other patch size": Member("vit_medium_patch32_clip_224", settings={"img_size": (64, 128), "depth": 3}),
    "ViT, mean of patches": Member("vit_medium_patch16_gap_240", settings={"img_size": (64, 128), "depth": 3}),
    "DINOv2, registers": Member("vit_small_patch14_reg4_dinov2", (56, 112), {"img_size": (56, 112), "depth": 3}),
    "SigLIP tower": Member("vit_base_patch16_siglip_224", settings={"img_size": (64, 128), **SMALL}),
    "FlexiViT": Member("flexivit_small", settings={"img_size": (64, 128), "depth": 3}),
    "AIMv2": Member("aimv2_large_patch14_224", (56, 112), {"img_size": (56, 112), **SMALL}),
    "ViT behind a ResNet": Member("vit_tiny_r_s16_p8_224", settings={"img_size": (64, 128), "depth": 3}),
    "ViT, relative positions": Member("vit_relpos_small_patch16_224", settings={"img_size": (64, 128), "depth": 3}),
    "SAM's ViT": Member("samvit_base_patch16_224", settings=SMALL),
    "ViTamin": Member("vitamin_small_224", (64, 96), {"img_size": (64, 96)}),
    "VOLO": Member("volo_d1_224", (64, 96), {"img_size": (64, 96)}),
    "VoVNet": Member("ese_vovnet19b_slim_dw", aside="its poolings reach to the right and down"),
    "Xception": Member("legacy_xception", (64, 128)),
    "Xception, aligned": Member("xception41", (64, 96)),
    "XCiT": Member("xcit_nano_12_p16_224", settings={"depth": 3}),
}


def built(member: Member) -> tuple[nn.Module, Tensor]:
    """A small network with seeded random weights and ten classes, and an input."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(member.model, pretrained=False, num_classes=10, **member.settings).eval()
    with torch.no_grad():
        for one in model.modules():
            if isinstance(one, nn.Conv2d):
                centre(one)
            for name, parameter in one.named_parameters(recurse=False):
                # Scales of branches that start at next to nothing would hide every place.
                if parameter.dim() == 1 and name != "bias" and float(parameter.abs().max()) < 1e-3:
                    nn.init.constant_(parameter, 0.1)
        norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
        handles = [one.register_forward_pre_hook(settle) for one in norms]
        model(pictures(2, member.size))
    for handle in handles:
        handle.remove()
    return model, pictures(1, member.size)


def pictures(count: int, size: tuple[int, int]) -> Tensor:
    """Coarse and fine noise; of fine noise alone, deep layers see the same everywhere."""
    coarse = torch.rand(count, 3, size[0] // 16, size[1] // 16)
    return (nn.functional.interpolate(coarse, size) + torch.rand(count, 3, *size)) / 2


def centre(conv: nn.Conv2d) -> None:
    """Lets a convolution look at its own cell above all, as one does that was trained to: after thirty random ones every
    place is smeared over the whole picture."""
    for axis, (taps, stride, dilation) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        if taps > stride:
            same = stride == 1 or isinstance(conv.padding, str)
            before = (taps - 1) / 2 * dilation - (stride - 1) / 2 if same else conv.padding[axis]
            away = (torch.arange(taps) * dilation - before - (stride - 1) / 2).abs()
            conv.weight.mul_((0.1 ** (away - away.min())).view(-1, *[1] * (1 - axis)))


def settle(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Takes a batch norm's statistics from what reaches it, or the signal would die out; with one variance for all
    channels, or the dead ones would be blown up."""
    values = inputs[0].transpose(0, 1).flatten(1)
    norm.running_mean.copy_(values.mean(dim=1))
    norm.running_var.fill_(values.var(dim=1).mean())


def line(family: str, model: nn.Module, x: Tensor) -> tuple[str, sightline.Capture | None]:
    """The family's line of the table, by running it, and what its layer said."""
    adapter = sightline.adapt(model)
    seen = None
    try:
        seen = sightline.capture(x, adapter)
        h, w = seen.activations.shape[2:]
        cells = [f"`{seen.layer}`", f"{h} x {w}", held(seen)]
    except SightlineError as error:
        cells = [f"refused: {error}", "", ""]
    member = FAMILIES[family]
    height, width = member.size
    parts = [family, f"`{member.model}`", f"{height} x {width}", *cells, attention(adapter, x), checked(member)]
    return "| " + " | ".join(parts) + " |", seen


def held(seen: sightline.Capture) -> str:
    form = seen.layout
    if form is None:
        return "maps"
    before = f", {form.before} before" if form.before else ""
    return f"{form.kind}{before}{f', {form.after} behind' if form.after else ''}"


def attention(adapter: sightline.Adapter, x: Tensor) -> str:
    try:
        sightline.attribute(x, adapter, method="attention-rollout", target=1)
    except SightlineError as error:
        return f"refused: {reason(str(error))}"
    return "yes"


def reason(message: str) -> str:
    for word, short in {
        "windows (": "windows",
        "attend to": "not all to all",
        "computes no attention": "no attention",
        "tokens first and": "the number of tokens changes",
        "no such tokens lie": "tokens on no grid",
        "computes several attentions": "several attentions in one block",
    }.items():
        if word in message:
            return short
    return message


def checked(member: Member) -> str:
    if member.aside:
        return f"within a cell: {member.aside}"
    return f"not: {member.unchecked}" if member.unchecked else "each cell"


def table() -> str:
    lines = [
        "| family | model in timm | input | layer | grid | what holds it | attention methods | checked |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family, member in FAMILIES.items():
        lines.append(line(family, *built(member))[0])
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")
