"""Tiny models of pictures and texts whose weights are set by hand, so that what they look at is known and not learnt.

A picture is black, with red and blue squares on whole patches. The networks read, place by place and with equal weight, how
much of it is red and how much blue, and nothing else: a black place counts for exactly nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hugging
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

SIDE, PATCH = 48, 8
GRID = SIDE // PATCH
RED, BLUE = (1.0, -1.0, -1.0), (-1.0, -1.0, 1.0)
PROMPTS = ("a red square", "a blue square")
WORDS = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "a",
    "red",
    "blue",
    "square",
    "what",
    "is",
    "this",
    "?",
    "USER",
    "ASSISTANT",
    ":",
)
_VISION: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16, "image_size": SIDE, "patch_size": PATCH,
}  # fmt: skip
_TEXT: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": len(WORDS),
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 8,
}  # fmt: skip


def scene(red: Sequence[tuple[int, int]], blue: Sequence[tuple[int, int]]) -> Tensor:
    """A picture (3, 48, 48), as a network gets it, with these places (row, column) of 6 x 6 red and blue."""
    x = torch.zeros(3, SIDE, SIDE)
    for places, colour in ((red, RED), (blue, BLUE)):
        for row, column in places:
            x[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = torch.tensor(colour)[
                :, None, None
            ]
    return x


RED_PLACES = ((0, 1), (0, 2), (1, 1), (1, 2))
BLUE_PLACES = ((4, 3), (4, 4), (5, 3))
BOTH = scene(RED_PLACES, BLUE_PLACES)


def share(heat: Tensor, places: Sequence[tuple[int, int]]) -> float:
    """The share of a map's (6, 6) energy that lies on these places."""
    heat = heat.clamp_min(0)
    return float(sum(heat[row, column] for row, column in places) / heat.sum())


def tokenizer(begin: str = "<s> $A </s>", signs: Any = ("<image>",)) -> Any:
    """Words apart, without capitals."""
    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    made.post_processor = processors.TemplateProcessing(single=begin, special_tokens=[("<s>", 1), ("</s>", 2)])
    return hugging.PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        extra_special_tokens=signs if isinstance(signs, dict) else [*signs],
    )


def image_processor() -> Any:
    """Pictures of 48 x 48, in -1..1."""
    sides = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
    return hugging.CLIPImageProcessor(size=sides[0], crop_size=sides[1], image_mean=[0.5] * 3, image_std=[0.5] * 3)


def _zero(*modules: nn.Module) -> None:
    with torch.no_grad():
        for module in modules:
            for one in module.parameters(recurse=False):
                one.zero_()


def _orthogonal(count: int, width: int, seed: int = 0) -> Tensor:
    """So many directions (count, width) at right angles to each other, and to (1, 1, 1, ...)."""
    rows = torch.randn(count + 1, width, generator=torch.Generator().manual_seed(seed))
    rows[0] = 1
    return torch.linalg.qr(rows.T)[0].T[1:]


def _see_colours(embeddings: Any, directions: Tensor) -> None:
    """The patch embedding: how red a place is, how blue, and that it is a place, along three directions."""
    with torch.no_grad():
        kernel = torch.stack([torch.tensor(RED), torch.tensor(BLUE)]) / (3 * PATCH * PATCH)
        weight = torch.einsum("kd,kc->dc", directions[:2], kernel)[:, :, None, None]
        embeddings.patch_embedding.weight.copy_(weight.expand_as(embeddings.patch_embedding.weight))
        if embeddings.patch_embedding.bias is not None:
            embeddings.patch_embedding.bias.zero_()
        embeddings.position_embedding.weight.copy_(directions[2].expand_as(embeddings.position_embedding.weight))


def _readings(module: Any, layer: str) -> Tensor:
    """What a layer says (3, D) of a red, a blue and a black place."""
    seen: list[Tensor] = []
    handle = module.get_submodule(layer).register_forward_hook(lambda _m, _i, output: seen.append(output.detach()))
    with torch.no_grad():
        module.vision_model(pixel_values=scene([(0, 0)], [(0, 1)])[None])
    handle.remove()
    return seen[0][0, -GRID * GRID :][:3]


def _worth(readings: Tensor, wanted: Tensor) -> Tensor:
    """The matrix (D, D) that makes the wanted (2, D) of what is said of red and blue, and nothing of what is said of black."""
    return torch.linalg.pinv(readings).mm(torch.cat([wanted, torch.zeros_like(wanted[:1])])).T


def text_features(module: Any, prompts: Sequence[str] = PROMPTS) -> Tensor:
    """Of the texts, by transformers' own function."""
    long = {"padding": "max_length", "max_length": 8} if hasattr(module, "logit_bias") else {"padding": True}
    with torch.no_grad():
        return module.get_text_features(**tokenizer()(list(prompts), return_tensors="pt", **long)).pooler_output


def _tell_texts_apart(module: Any, projection: nn.Module) -> None:
    """The end of the text tower, so that the features of the two prompts are at right angles."""
    tokens = tokenizer()(list(PROMPTS), return_tensors="pt", padding="max_length", max_length=8)
    if not hasattr(module, "logit_bias"):
        tokens = tokenizer()(list(PROMPTS), return_tensors="pt")
    seen: list[Tensor] = []
    handle = projection.register_forward_pre_hook(lambda _m, given: seen.append(given[0].detach()))
    with torch.no_grad():
        module.get_text_features(**tokens)
        projection.weight.copy_((torch.linalg.pinv(seen[0]) @ _orthogonal(8, 16, seed=1)[:2]).T)
        if projection.bias is not None:
            projection.bias.zero_()
    handle.remove()


def clip() -> Any:
    """A CLIPModel for which "red" is how much of the picture is red, and "blue" how much is blue."""
    torch.manual_seed(0)
    module = hugging.CLIPModel(hugging.CLIPConfig(vision_config=_VISION, text_config=_TEXT, projection_dim=16)).eval()
    vision, layer = module.vision_model, module.vision_model.encoder.layers[0]
    directions = _orthogonal(8, 16)
    _see_colours(vision.embeddings, directions)
    _zero(layer.mlp.fc1, layer.mlp.fc2, layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
    _tell_texts_apart(module, module.text_projection)
    texts = nn.functional.normalize(text_features(module), dim=-1)
    with torch.no_grad():
        vision.embeddings.class_embedding.copy_(2 * directions[3])
        readings = _readings(module, "vision_model.encoder.layers.0.layer_norm1")
        layer.self_attn.v_proj.weight.copy_(_worth(readings, 20 * directions[4:6]))
        layer.self_attn.out_proj.weight.copy_(torch.eye(16))
        layer.self_attn.out_proj.bias.zero_()
        other = torch.linalg.svd(texts)[2][2]  # at right angles to both texts
        kept = torch.stack([directions[4], directions[5], directions[3]])
        module.visual_projection.weight.copy_(torch.stack([texts[0], texts[1], other]).T @ kept)
    return module


def siglip() -> Any:
    """The same as a SiglipModel, whose head reads all places alike."""
    torch.manual_seed(0)
    text = _TEXT | {"projection_size": 16}
    module = hugging.SiglipModel(hugging.SiglipConfig(vision_config=_VISION, text_config=text)).eval()
    vision, layer = module.vision_model, module.vision_model.encoder.layers[0]
    directions = _orthogonal(8, 16)
    _see_colours(vision.embeddings, directions)
    _zero(layer.mlp.fc1, layer.mlp.fc2, layer.self_attn.out_proj)
    _tell_texts_apart(module, module.text_model.head)
    texts = nn.functional.normalize(text_features(module), dim=-1)
    head = vision.head
    _zero(head.mlp.fc1, head.mlp.fc2)
    with torch.no_grad():
        module.logit_scale.fill_(2.0)
        module.logit_bias.fill_(-3.0)
        readings = _readings(module, "vision_model.post_layernorm")
        head.attention.in_proj_weight.zero_()
        head.attention.in_proj_bias.zero_()
        head.attention.in_proj_weight[32:].copy_(_worth(readings, 20 * texts))
        head.attention.out_proj.weight.copy_(torch.eye(16))
        head.attention.out_proj.bias.copy_(torch.linalg.svd(texts)[2][2])
    return module


def llava() -> Any:
    """A LLaVA that says one word, the colour of which there is more."""
    torch.manual_seed(0)
    language = hugging.LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, intermediate_size=16,
        vocab_size=len(WORDS), max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    settings = hugging.LlavaConfig(
        vision_config=hugging.CLIPVisionConfig(**_VISION), text_config=language, image_token_id=4, image_token_index=4
    )
    module = hugging.LlavaForConditionalGeneration(settings).eval()
    inner = module.model
    directions = _orthogonal(3, 16)
    _see_colours(inner.vision_tower.embeddings, directions)
    tower = nn.Module()
    tower.vision_model = inner.vision_tower
    layer = inner.language_model.layers[0]
    _zero(layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj, layer.self_attn.q_proj, layer.self_attn.k_proj)
    with torch.no_grad():
        readings = _readings(tower, "vision_model.pre_layrnorm")
        projector = inner.multi_modal_projector
        _zero(projector.linear_1, projector.linear_2)
        # 6 for its own colour and 0 for all else, of which the GELU makes 6 and 0.
        colours = torch.linalg.pinv(readings) @ torch.tensor([[6.0, 0.0], [0.0, 6.0], [0.0, 0.0]])
        projector.linear_1.weight[:2] = colours.T
        projector.linear_2.weight[0, 0] = projector.linear_2.weight[1, 1] = 1.0
        words = inner.language_model.embed_tokens.weight
        words.zero_()
        words[:, 2] = 1.0  # a word; it says nothing of colours
        words[WORDS.index("red")] = words[WORDS.index("blue")] = torch.eye(16)[3]  # after a colour, the end
        layer.self_attn.v_proj.weight.zero_()
        layer.self_attn.v_proj.weight[0, 0] = layer.self_attn.v_proj.weight[1, 1] = 4.0
        layer.self_attn.o_proj.weight.copy_(torch.eye(16))
        module.lm_head.weight.zero_()
        module.lm_head.weight[WORDS.index("red"), 0] = module.lm_head.weight[WORDS.index("blue"), 1] = 3.0
        module.lm_head.weight[2, 3] = 9.0
    return module


def llava_processor() -> Any:
    """Of the LLaVA: the question between USER and ASSISTANT, behind 36 places for the picture."""
    return hugging.LlavaProcessor(
        image_processor(),
        tokenizer("<s> $A"),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def saved(folder: Path, module: Any, processor: Any) -> Path:
    """A repository as transformers writes it."""
    folder.mkdir()
    module.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def exact(picture: Image.Image) -> Tensor:
    """Grey is exactly 0: a hand-set network tells nothing from something."""
    values = np.asarray(picture.convert("RGB").resize((48, 48), Image.Resampling.NEAREST), np.float32)
    return torch.from_numpy(np.where(np.abs(values - 127.5) < 1, 127.5, values) / 127.5 - 1).permute(2, 0, 1).float()


def drawn(x: Tensor) -> Image.Image:
    values = ((x.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    return Image.fromarray(values).resize((288, 288), Image.Resampling.NEAREST)
