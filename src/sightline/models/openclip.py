"""Models of open_clip, `openclip:NAME` or `openclip:NAME:TAG`, with the weights of the Hugging Face hub or a local file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from sightline._optional import optional
from sightline._quiet import quiet
from sightline.errors import ModelError, did_you_mean
from sightline.models.adapter import Adapter
from sightline.models.folders import in_repository
from sightline.models.given import Finding, Given, Stored
from sightline.models.hub import fetched, fetched_if_there
from sightline.models.made import made
from sightline.models.planned import planned
from sightline.models.preprocess import Fit
from sightline.models.prompts import prompted, towers_of
from sightline.models.texts import tokenizer_of
from sightline.models.weights import filled, read_stored

# As open_clip names a file of weights in a repository, the safe one first.
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_FITS: Mapping[str, Fit] = {"shortest": "shorter", "longest": "longer", "squash": "exact"}


@dataclass(frozen=True, eq=False)
class _Reader:
    """A tokenizer of a repository as open_clip asks it; with the names that open_clip's own has."""

    tokenizer: Any
    clean_fn: Any
    context_length: int
    without: int | None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The tokens (N, length) of texts."""
        cleaned = [self.clean_fn(one) for one in texts]
        found: Tensor = self.tokenizer(
            cleaned, return_tensors="pt", max_length=self.context_length, padding="max_length", truncation=True
        )["input_ids"]
        return found if self.without is None else found.masked_fill(found == self.without, 0)


def build(name: str, given: Given) -> Adapter:
    """An architecture of open_clip, asked by prompts."""
    optional("open_clip", "openclip", f"openclip:{name}")
    with quiet():
        return _built(name, given)


def _built(name: str, given: Given) -> Adapter:
    base, _, tag = name.partition(":")
    config, own = _described(base, tag)
    prompts = given.prompts
    if prompts is None:
        raise ModelError(
            f"openclip:{name} tells pictures apart by texts, and none was given: --prompt 'a photo of a cat' --prompt 'a photo of a dog' "
            "(prompts=[...])"
        )
    if given.question is not None or given.num_classes is not None:
        raise ModelError(
            f"openclip:{name} compares texts (--prompt) and has no head of classes; leave question and num_classes out"
        )
    read = _tokenizer(base, config)

    def make(_: int | None) -> nn.Module:
        return _network(config, bool(own.get("quick_gelu", config.get("quick_gelu", False))))

    origin: dict[str, Any] = {"source": "open_clip", "architecture": base}
    found = [*given.found, Finding("architecture", f"openclip:{base}", "its name")]
    if given.random_weights:
        module = make(None)
    else:
        if given.weights is None:
            repository, stored = _published(name, own)
            given, origin["weights"] = replace(given, weights=stored), repository
        if given.weights is not None:
            plan = planned(lambda: make(None), f"openclip:{base}", given.weights.tensors)
            given = replace(given, weights=replace(given.weights, tensors=_own_names(plan, given.weights.tensors)))
        module, _, about = filled(make, 0, given)
        found += [one for one in about if one.what != "classes"]
    module = module.eval()
    towers = towers_of(module, read)
    names = given.labels
    known = replace(given, labels=names or prompts)
    spec = _preprocessing(module, own)
    adapter = made(f"openclip:{name}", module, known, spec, None, origin, found, len(prompts))
    return prompted(adapter, module, towers, prompts, names)


def _described(base: str, tag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What open_clip says of an architecture, and of its published weights: those of the tag, else the first on the hub."""
    import open_clip

    names = open_clip.list_models()
    if base not in names:
        raise ModelError(
            f"open_clip has no model {base!r:.80}.{did_you_mean(base[:80], names)} Expected such as openclip:ViT-B-32"
        )
    config: dict[str, Any] = open_clip.get_model_config(base)
    if config["text_cfg"].get("hf_model_name"):
        raise ModelError(
            f"the text tower of openclip:{base} is a network of another library, whose configuration open_clip fetches; that is not "
            "supported. Give the live model: sightline.zero_shot(model, tokenizer, prompts)"
        )
    tags = open_clip.list_pretrained_tags_by_model(base)
    if tag and tag not in tags:
        raise ModelError(f"openclip:{base} has no weights {tag!r:.80}; it has {', '.join(tags) or 'none'}")
    each = {one: dict(open_clip.get_pretrained_cfg(base, one)) for one in tags}
    chosen = tag or next((one for one in tags if each[one].get("hf_hub")), "")
    return config, each.get(chosen, {})


def _published(name: str, own: Mapping[str, Any]) -> tuple[str, Stored]:
    """The official weights, and the repository that they come from."""
    repository, _, file = str(own.get("hf_hub", "")).rpartition("/")
    if not repository:
        raise ModelError(f"openclip:{name} has no weights on the hub. Give --weights FILE, or --random-weights")
    if file:
        return repository, read_stored(fetched(repository, file, f"openclip:{name}"))
    for one in _WEIGHTS:
        path = fetched_if_there(repository, one, f"openclip:{name}")
        if path is not None:
            return repository, read_stored(path)
    raise ModelError(f"the hub's repository {repository} of openclip:{name} has none of {', '.join(_WEIGHTS)}")


def _network(config: Mapping[str, Any], quick: bool) -> nn.Module:
    """The network that open_clip's own configuration describes; its `create_model` would set up the logging of the whole process."""
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    parts = deepcopy(dict(config))
    parts["vision_cfg"].pop("timm_model_pretrained", None)
    kind = CLIP if not parts.pop("custom_text", False) else CoCa if "multimodal_cfg" in parts else CustomTextCLIP
    module: nn.Module = kind(**parts | {"quick_gelu": quick})
    return module


def _own_names(plan: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file under the names of this network: of old, all parts of the text tower stood outside of it."""
    from open_clip.model import convert_to_custom_text_state_dict

    tensors = {name.removeprefix("module."): one for name, one in stored.items()}
    own = plan.state_dict()
    if "positional_embedding" in tensors and "positional_embedding" not in own:
        tensors = dict(convert_to_custom_text_state_dict(tensors))
    for name in ("logit_scale", "logit_bias"):  # a number, or a list of one
        if name in own and name in tensors and tensors[name].numel() == 1:
            tensors[name] = tensors[name].reshape(own[name].shape)
    return {
        name: one for name, one in tensors.items() if name in own or not name.endswith(("position_ids", "attn_mask"))
    }


def _tokenizer(base: str, config: Mapping[str, Any]) -> Any:
    """open_clip's own tokenizer, or the one of the repository that an architecture names, read as data."""
    from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

    said = config["text_cfg"]
    repository = said.get("hf_tokenizer_name")
    more = dict(said.get("tokenizer_kwargs") or {})
    length = int(said.get("context_length", 77))
    if not repository:
        return SimpleTokenizer(context_length=length, **more)
    if said.get("tokenizer_mode"):
        raise ModelError(
            f"openclip:{base} reads texts in a mode of its own ({said['tokenizer_mode']}), which is not supported"
        )
    optional("transformers", "transformers", f"the tokenizer of openclip:{base}")
    tokenizer = tokenizer_of(in_repository(str(repository)), "")
    without = tokenizer.sep_token_id if more.get("strip_sep_token") else None
    return _Reader(tokenizer, get_clean_fn(more.get("clean", "whitespace")), length, without)


def _preprocessing(module: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """As the published weights were trained, for the size of this network; arguments of `preprocess.standard`."""
    from open_clip.transform import PreprocessCfg

    usual = asdict(PreprocessCfg())
    size = module.visual.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    fit = _FITS[own.get("resize_mode") or usual["resize_mode"]]
    return {
        "size": (width, height),
        "resize": (width, height) if fit != "shorter" or width != height else width,
        "fit": fit,
        "interpolation": own.get("interpolation") or usual["interpolation"],
        "mean": tuple(own.get("mean") or usual["mean"]),
        "std": tuple(own.get("std") or usual["std"]),
    }
