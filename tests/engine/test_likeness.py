"""Likeness to another picture, labels of their own, values; and the ways to an embedding: a head left out, a module called otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sightline
from conftest import Plain, assert_close, assert_untouched, by_autograd, images, seeded
from made_dense import Colours, TwoBoxes, block_photo, prepared
from oracles_targets import cosine, sigmoid
from sightline.engine.asked import Asked
from sightline.engine.probe import Together
from sightline.errors import ModelError, NonFiniteError, SightlineError, TargetError
from sightline.models.called import called
from sightline.models.headless import without_head

RED, GREEN = (255, 0, 0), (0, 255, 0)


class Means(nn.Module):
    """The embedding is the mean colour, through a layer of 8 x 8 pixels a cell."""

    layer = "see"

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.AvgPool2d(8)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.see(x).mean(dim=(2, 3))


def noise(seed: int) -> Any:
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def model(net: nn.Module | None = None, task: Any = "embedding", **more: Any) -> sightline.Adapter:
    return sightline.adapt(net or Means(), layers=["see"], preprocess=prepared(), task=task, **more)


def embedded(net: nn.Module, photo: Any) -> list[float]:
    with torch.no_grad():
        found: list[float] = net(prepared()(photo)[0][None])[0].double().tolist()
    return found


# ---------------------------------------------------------------------------------------------------------- similarity


@pytest.mark.proves("grad-cam", says="of another picture, explains the cosine of the two embeddings")
@pytest.mark.parametrize("net", [Means(), seeded(Plain)])
def test_likeness_is_the_cosine_of_the_embeddings(net: nn.Module) -> None:
    adapter = sightline.adapt(net, layers=[net.layer], preprocess=prepared(), task="embedding")  # type: ignore[list-item]
    for one, other in ((0, 1), (1, 0), (2, 2)):
        found = sightline.explain(noise(one), adapter, method="hires-cam", target=sightline.similarity(noise(other)))
        assert found.score == pytest.approx(cosine(embedded(net, noise(one)), embedded(net, noise(other))), abs=1e-6)
        assert found.probability is None
        assert found.mark is not None
        assert found.mark.picture is not None
        assert np.array_equal(np.asarray(found.mark.picture), np.asarray(noise(other)))


@pytest.mark.proves("hires-cam", "grad-cam", says="of another picture, is that of full autograd through the cosine")
def test_maps_of_likeness_are_those_of_full_autograd() -> None:
    net = seeded(Plain, dtype=torch.float64)
    adapter = sightline.adapt(net, layers=[net.layer], preprocess=prepared(), task="embedding")
    x = prepared()(noise(0))[0][None].double()
    there = net(prepared()(noise(1))[0][None].double()).detach()

    def score(output: Tensor) -> Tensor:
        return (output * there).sum(dim=1) / (output.norm(dim=1) * there.norm())

    a, g, scores = by_autograd(net, net.layer, x, score)
    target = sightline.similarity(noise(1))
    assert_close(sightline.attribute(x, adapter, method="hires-cam", target=target), (a * g).sum(dim=1), 1e-9)
    cam = (g.mean(dim=(2, 3), keepdim=True) * a).sum(dim=1).relu()
    assert_close(sightline.attribute(x, adapter, method="grad-cam", target=target), cam, 1e-9)
    assert scores.shape == (1,)


@pytest.mark.proves(
    "hires-cam", says="of another picture, raises the colour that both share and lowers what the other lacks"
)
def test_what_both_pictures_share_makes_them_alike() -> None:
    """e = (r, g, 0) of a picture half red, half green; the other is red: d cos / d r > 0 > d cos / d g."""
    photo = block_photo((32, 32), {(0, 0, 16, 32): RED, (16, 0, 32, 32): GREEN})
    found = sightline.explain(
        photo, model(), method="hires-cam", target=sightline.similarity(block_photo((32, 32), {}, RED))
    )
    r = g = 0.5
    length = (r * r + g * g) ** 0.5
    wanted = np.zeros((4, 4))
    wanted[:, :2] = (1 / length - r * r / length**3) / 16
    wanted[:, 2:] = -r * g / length**3 / 16
    np.testing.assert_allclose(found.signed_raw, wanted, atol=1e-6)
    assert found.score == pytest.approx(0.5**0.5)


def test_the_other_picture_leaves_the_model_as_it_is() -> None:
    net = seeded(Plain)
    net.train()
    adapter = sightline.adapt(net, layers=[net.layer], preprocess=prepared(), task="embedding")
    with assert_untouched(net):
        sightline.explain(noise(0), adapter, method="grad-cam", target=sightline.similarity(noise(1)))


def test_an_embedding_of_one_place_is_an_embedding() -> None:
    class Pooled(Means):
        def forward(self, x: Tensor) -> Tensor:
            return self.see(x).mean(dim=(2, 3), keepdim=True)

    found = sightline.explain(noise(0), model(Pooled()), method="hires-cam", target=sightline.similarity(noise(1)))
    wanted = sightline.explain(noise(0), model(), method="hires-cam", target=sightline.similarity(noise(1)))
    assert np.array_equal(found.raw, wanted.raw)


@pytest.mark.parametrize(
    ("build", "target", "error", "said"),
    [
        (lambda: model(task=""), sightline.similarity(noise(1)), TargetError, "nothing says that it gives an embedding; say so: --task embedding"),
        (lambda: model(task="classes"), sightline.similarity(noise(1)), TargetError, "has no embedding to compare"),
        (lambda: model(Colours()), sightline.similarity(noise(1)), TargetError, "is no embedding"),
        (lambda: model(), None, TargetError, "gives an embedding and has no class"),
        (lambda: model(), sightline.similarity("nowhere.png"), SightlineError, "nowhere.png"),
    ],
)  # fmt: skip
def test_what_can_not_be_compared_is_refused(build: Any, target: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        sightline.explain(noise(0), build(), method="hires-cam", target=target)


def test_an_embedding_with_nan_is_refused() -> None:
    class Broken(Means):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / (x.mean() > 0.5)

    with pytest.raises(NonFiniteError, match="NaN or infinity in the embedding"):
        sightline.explain(
            block_photo((32, 32), {}, (255,) * 3),
            model(Broken()),
            method="hires-cam",
            target=sightline.similarity(block_photo((32, 32), {}, (9,) * 3)),
        )


def test_without_preprocessing_no_photograph_can_be_compared_with() -> None:
    with pytest.raises(ModelError, match="without preprocessing, so that no photograph can be compared with"):
        sightline.attribute(
            torch.rand(1, 3, 32, 32),
            sightline.adapt(Means(), layers=["see"], task="embedding"),
            method="hires-cam",
            target=sightline.similarity(noise(1)),
        )


# ------------------------------------------------------------------------------------------------- ways to an embedding


def vit() -> nn.Module:
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=5
    )


def resnet18() -> nn.Module:
    from torchvision.models import resnet18 as build

    return build(weights=None)


def features(net: Any, x: Tensor) -> Tensor:
    """What the last linear layer is given, by the module's own parts."""
    if hasattr(net, "layer4"):
        for part in (net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4):
            x = part(x)
        return net.avgpool(x).flatten(1)
    tokens = net._process_input(x)
    tokens = torch.cat([net.class_token.expand(len(x), -1, -1), tokens], dim=1)
    return net.encoder(tokens)[:, 0]


@pytest.mark.parametrize("build", [resnet18, vit])
def test_a_classifier_without_its_head_gives_what_the_head_was_given(build: Any) -> None:
    net = seeded(build)
    with torch.no_grad():
        if hasattr(net, "heads"):
            nn.init.normal_(net.heads.head.weight)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with assert_untouched(net, x):
        headless = without_head(net, x, lambda output: output)
    with torch.no_grad():
        assert torch.equal(headless.eval()(x), features(net, x))
        head = net.fc if hasattr(net, "fc") else net.heads
        assert torch.equal(head(headless(x)), net(x))
    assert dict(headless.named_parameters()).keys() < dict(net.named_parameters()).keys()


def test_a_module_that_does_not_end_in_a_linear_layer_is_refused() -> None:
    with pytest.raises(ModelError, match="doesn't end in a linear layer of classes"):
        without_head(Means(), torch.rand(1, 3, 32, 32), lambda output: output)


def test_a_module_called_in_another_way_shares_its_parts_and_leaves_the_module_alone() -> None:
    net = seeded(Plain)
    x = images(2)

    def twice(self: Any, forward: Any, given: Tensor) -> Tensor:
        return 2 * forward(given) + self.more

    with assert_untouched(net, x):
        other = called(net, twice, more=torch.tensor(3.0))
        with torch.no_grad():
            assert torch.equal(other(x), 2 * net(x) + 3)
    assert isinstance(other, Plain)
    assert type(other).__name__ == "Plain"
    assert [name for name, _ in other.named_modules()] == [name for name, _ in net.named_modules()]
    assert all(one is two for one, two in zip(other.parameters(), net.parameters(), strict=True))
    assert not hasattr(net, "more")
    other.register_forward_hook(lambda *_: None)
    assert not net._forward_hooks
    assert_close(
        sightline.attribute(x, other, method="grad-cam", layer=net.layer, target=1),
        2 * sightline.attribute(x, net, method="grad-cam", layer=net.layer, target=1),
        1e-5,
    )


# --------------------------------------------------------------------------------------------------------- shared masks


def test_targets_asked_together_run_the_model_once_for_each_batch_of_pictures() -> None:
    runs: list[int] = []

    def run(pictures: Tensor, targets: Any) -> Tensor:
        runs.append(len(pictures))
        return torch.stack([target(pictures.mean(dim=(1, 2, 3))[:, None]) for target in targets])

    first = Asked(lambda output: output[:, 0], None, "one")
    second = Asked(lambda output: 2 * output[:, 0], None, "two", alike=lambda output: 3 * output[:, 0])
    both = Together([first, second])
    a, b = images(3), images(3, seed=2)
    plain = a.mean(dim=(1, 2, 3))
    assert torch.equal(both.scores(first, a, False, run), plain)
    assert torch.equal(both.scores(second, a, False, run), 2 * plain)
    assert runs == [3]
    assert torch.equal(both.scores(second, a, True, run), 3 * plain), "likeness is another question"
    assert torch.equal(both.scores(first, a, True, run), plain)
    assert runs == [3, 3]
    both.scores(first, b, False, run)
    both.scores(first, a[:2], False, run)
    both.scores(first, a.clone(), False, run)
    assert runs == [3, 3, 3, 2]


# --------------------------------------------------------------------------------------------------------------- labels


class Logits(nn.Module):
    """The logits are those that it is given, moved by the picture's mean."""

    layer = "see"

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.see = nn.AvgPool2d(8)
        self.logits = logits
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        seen = self.see(x).mean(dim=(1, 2, 3))
        return torch.stack([value + seen * (at + 1) for at, value in enumerate(self.logits)], dim=1)


@pytest.mark.parametrize("logits", [(-1.0, 0.5, 3.0), (0.5, 0.5), (0.1,) * 10, (0.25, 0.75, 0.0), (-2.0,)])
def test_labels_have_a_sigmoid_each_everywhere(logits: tuple[float, ...]) -> None:
    """Black, so that the logits are what they are; some of them look like probabilities, and are none."""
    photo = block_photo((32, 32), {})
    names = [f"name {at}" for at in range(len(logits))]
    adapter = model(Logits(*logits), "labels", labels=names)
    wanted = {name: sigmoid(value) for name, value in zip(names, logits, strict=True)}
    looked = sightline.look(photo, adapter)
    assert {one.label: one.probability for one in looked.predictions} == pytest.approx(wanted)
    for at, name in enumerate(names):
        found = sightline.explain(looked, method="hires-cam", target=name)
        assert found.probability == pytest.approx(wanted[name])
        log = sightline.explain(looked, method="hires-cam", target=sightline.log_probability(at))
        assert log.score == pytest.approx(np.log(wanted[name]))
        share = sightline.explain(looked, method="hires-cam", target=sightline.probability(name))
        assert share.score == pytest.approx(wanted[name])
    several = (
        sightline.compare(looked, methods=["hires-cam"], targets=[sightline.above(0.5)]) if max(logits) > 0 else []
    )
    assert {one.label for one in several} == {name for name, share in wanted.items() if share >= 0.5}
    assert [one.probability for one in several] == sorted((one.probability for one in several), reverse=True)


def test_values_have_no_probability() -> None:
    adapter = model(Logits(0.5, 2.0), "regression", labels=["width", "height"])
    photo = block_photo((32, 32), {}, (51, 51, 51))
    up = sightline.explain(photo, adapter, method="hires-cam", target=sightline.regression("height"))
    down = sightline.explain(photo, adapter, method="hires-cam", target=sightline.regression(1, up=False))
    assert up.score == pytest.approx(2.4)
    assert down.score == pytest.approx(-2.4)
    assert up.probability is None
    assert up.predictions == ()
    np.testing.assert_array_equal(up.signed_raw, -down.signed_raw)
    assert up.label == "height up (now 2.4)"
    with pytest.raises(TargetError, match=r"gives 2 values \(width, height\); say which: up:NAME or down:NUMBER"):
        sightline.explain(photo, adapter, method="hires-cam", target=None)
    assert sightline.explain(photo, adapter, method="hires-cam", target="width").score == pytest.approx(0.7)


def test_for_and_against_are_the_one_logit_and_its_opposite() -> None:
    adapter, photo = model(Logits(1.5), "", labels=["rust"]), block_photo((32, 32), {}, (51, 51, 51))
    one = sightline.explain(photo, adapter, method="hires-cam", target=sightline.binary())
    other = sightline.explain(photo, adapter, method="hires-cam", target=sightline.binary(False))
    assert (one.label, other.label) == ("rust", "against rust")
    assert one.score == pytest.approx(1.7)
    assert other.score == pytest.approx(-1.7)
    assert one.probability == pytest.approx(sigmoid(1.7))
    assert one.raw.any()
    assert not other.raw.any() or other.signed
    np.testing.assert_array_equal(one.signed_raw, -other.signed_raw)


# ------------------------------------------------------------------------------------------- every task x every target

MODELS: dict[str, Any] = {
    "classes": lambda: model(Logits(-1.0, 0.5, 3.0), "classes"),
    "labels": lambda: model(Logits(-1.0, 0.5, 3.0), "labels"),
    "regression": lambda: model(Logits(-1.0, 0.5, 3.0), "regression"),
    "embedding": lambda: model(),
    "segmentation": lambda: model(Colours(), ""),
    "detection": lambda: model(TwoBoxes(), ""),
    "words": lambda: model(Logits(-1.0, -0.5, -3.0), "words", labels=["a", "black", "cat"]),
}
TARGETS: dict[str, tuple[Any, set[str]]] = {
    "a class": (1, {"classes", "labels", "regression", "segmentation", "detection", "words"}),
    "log": (sightline.log_probability(1), {"classes", "labels", "words"}),
    "probability": (sightline.probability(1), {"classes", "labels", "words"}),
    "margin": (sightline.margin(1, 2), {"classes", "labels", "regression", "words"}),
    "margin by name": (sightline.margin("1", "2"), {"classes", "labels", "words"}),
    "binary": (sightline.binary(), set()),
    "regression": (sightline.regression(1), {"classes", "labels", "regression"}),
    "segment": (sightline.segment(1, point=(4, 12)), {"segmentation"}),
    "box": (sightline.box((0, 8, 16, 24)), {"detection"}),
    "instance": (sightline.instance(1), {"detection"}),
    "similarity": (sightline.similarity(noise(1)), {"embedding"}),
    "above": (sightline.above(0.01), {"classes", "labels", "segmentation", "detection"}),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("task", MODELS)
def test_a_target_that_a_task_does_not_have_is_refused_with_what_it_has(task: str, target: str) -> None:
    asked, fitting = TARGETS[target]
    photo = block_photo((32, 32), {(0, 8, 16, 24): (20, 200, 20)}, (10, 20, 10))

    def explained() -> Any:
        return sightline.compare(photo, MODELS[task](), methods=["hires-cam"], targets=[asked])

    if task in fitting:
        assert explained()
        return
    with pytest.raises(TargetError) as error:
        explained()
    said = str(error.value)
    assert len(said) > 40
    assert "adapt(module, logits" not in said, "the logits are where they belong"
    assert "Traceback" not in said
    assert any(
        part in said for part in ("it can be asked for", "needs two different classes", "say so: --task embedding")
    ), said


def test_what_stands_for_several_targets_is_refused_where_one_is_explained() -> None:
    for target in (sightline.above(0.01),):
        with pytest.raises(TargetError, match=r"stands for several targets; give it to sightline\.compare"):
            sightline.explain(noise(0), MODELS["labels"](), method="hires-cam", target=target)
        with pytest.raises(TargetError, match=r"stands for several targets; give it to sightline\.compare"):
            sightline.attribute(torch.rand(1, 3, 32, 32), MODELS["labels"](), method="hires-cam", target=target)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "half", None])
def test_a_share_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(TargetError, match="expected a probability, 0 to 1"):
        sightline.above(share)
