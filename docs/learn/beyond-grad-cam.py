# %% [markdown]
# # Beyond Grad-CAM
#
# One photograph, one answer of one model, and many methods that claim to say why. They ask the model different questions, they cost different amounts, and
# they don't all agree. You see what each one asks, check what it promises, count what it costs, and let the *trust card* say which of the maps are to be
# believed.
#
# It takes about a minute on one core, because all numbers of samples are small here. What more of them would give is said at each method. It needs the extra
# `superpixels`: `pip install 'sightline[superpixels]'`.

# %%
import time
import warnings

import numpy as np
import torch
from pictures import photo, shown
from PIL import Image
from torch.nn import functional as F

import sightline
from sightline.testing import COLOURS, SIDE, draw

warnings.filterwarnings("ignore", message="IProgress not found")  # of a bar that isn't shown here
picture = photo("cat", otherwise="cat")
model = sightline.load_model("bundled")
look = sightline.look(picture, model)
for one in look.predictions[:3]:
    print(f"{one.probability:6.1%}  {one.label}")
TARGET = look.predictions[0].index
shown(picture, "the photograph that is explained", 420)

# %% [markdown]
# All maps of this page explain the same *score*: the output of the model for its best guess above, before it is turned into a probability.
#
# `asked` keeps what each method costs: how many pictures the model was shown, and the seconds.

# %%
maps: dict[str, sightline.Heatmap] = {}
costs: dict[str, tuple[int, float]] = {}


def asked(method: str, **options: object) -> sightline.Heatmap:
    """One method's map of the photograph, with what it cost."""
    began = time.perf_counter()
    maps[method] = sightline.explain(picture, model, method=method, target=TARGET, options=options)
    costs[method] = 1 + maps[method].origin.cost, time.perf_counter() - began
    return maps[method]


def beside(*names: str) -> object:
    """These maps beside each other, each stretched to its own maximum."""
    drawn = sightline.side_by_side([maps[name] for name in names], same_scale=False)
    return shown(drawn, ", ".join(names) + ", side by side", 1100)


_ = asked("grad-cam")  # what runs first also sets things up: it is asked again below, and only that counts

# %% [markdown]
# ## Relatives of Grad-CAM
#
# They all work at one layer, from one pass through the model. Grad-CAM gives each *channel* (one feature, such as "fur") a weight: the mean of its
# gradients. Its relatives weigh otherwise:
#
# - **Grad-CAM++** gives every place where a feature occurs the same say, so that two cats both show, not only the larger one.
# - **HiResCAM** takes no mean: it multiplies gradient and activation cell by cell, and adds the channels. So it shows where the layer really raised the
#   score, and keeps what lowered it (blue).

# %%
for name in ("grad-cam", "grad-cam++", "hires-cam"):
    asked(name)
beside("grad-cam", "grad-cam++", "hires-cam")

# %%
at_end = np.abs(np.maximum(maps["hires-cam"].raw, 0) - maps["grad-cam"].raw).max() / maps["grad-cam"].raw.max()
print(f"last layer: grad-cam and what is positive of hires-cam differ by {at_end:.1e} of the maximum")
early = sightline.compare(
    picture, model, methods=["grad-cam", "hires-cam", "layer-cam"], targets=[TARGET], layer="blocks.3", same_scale=False
)
one, other = (np.maximum(found.raw, 0) / np.maximum(found.raw, 0).sum() for found in early[:2])
print(f"layer blocks.3: {np.abs(one - other).sum() / 2:.0%} of their heat lies elsewhere")
shown(sightline.side_by_side(early, same_scale=False), "three methods at an earlier layer", 1100)

# %% [markdown]
# At the last layer of this model the two are the same map, up to rounding. That must be so: behind it the model takes the mean over all places and adds up,
# so that the gradient of a channel is the same everywhere. At an earlier layer it isn't, and then taking its mean can light up places that the model did not
# use. **Where the two differ, believe HiResCAM.**
#
# ## Gradients of the pixels
#
# These go all the way back to the picture, and have one value a pixel.
#
# - **Saliency**: how much the score would move if this pixel changed a little. It tells where the score is *sensitive*, which is not what made it high.
# - **SmoothGrad**: the mean of that over noisy copies, because the gradient of one picture flickers.
# - **Guided backprop**: a gradient with another rule, which follows edges. It is here because you will meet it. Wait for its trust card.

# %%
asked("saliency")
asked("smooth-grad", samples=10)
asked("guided-backprop")
beside("saliency", "smooth-grad", "guided-backprop")

# %%
error = maps["smooth-grad"].details["standard error"]
relative = np.median(error / np.maximum(maps["smooth-grad"].raw, 1e-12))
print(f"smooth-grad, 10 copies: the standard error is {relative:.0%} of a pixel's value (median)")

# %% [markdown]
# The **standard error** says how far another draw of the noise would lead. It falls with the square root of the number of copies: four times as many
# (`samples=40`) halve it.
#
# ### Integrated Gradients, and a promise that can be checked
#
# Integrated Gradients walks from a **baseline**, a picture without evidence, to the photograph, and adds up the gradients on the way. It promises
# **completeness**: the map sums to what the score rose by on that way. A promise with a number in it can be checked. The baseline here is 0 in the units of
# the model's input, which is an even grey.

# %%
x = model.preprocess(picture)[0][None]
with torch.inference_mode():
    rise = float(model.module(x)[0, TARGET] - model.module(torch.zeros_like(x))[0, TARGET])
print(f"by plain PyTorch: the score rises by {rise:.3f} from the baseline to the photograph\n")
for steps in (8, 16, 48):
    found = asked("integrated-gradients", steps=steps)
    total = float(found.raw.sum())
    print(f"{steps:3} steps: the map sums to {total:7.3f}, {abs(total - rise) / abs(rise):6.1%} off")

# %% [markdown]
# Where the last line is far off, the way was cut into too few steps for a score that bends as much as this one; the map says so itself, among its warnings.
# 50 steps are the default, 200 are not rare.
#
# Completeness does not make a map right. It is complete *for its baseline*: another picture without evidence gives another map, as complete as the first.

# %%
grey = maps["integrated-gradients"]
black = sightline.explain(
    picture, model, method="integrated-gradients", target=TARGET, options={"steps": 48, "baseline": "black"}
)
off = abs(black.details["residual"] / black.details["rise"])
print(f"from black the score rises by {black.details['rise']:.3f}; the map is {off:.1%} off")
print(f"correlation of the two maps, pixel by pixel: {np.corrcoef(grey.raw.ravel(), black.raw.ravel())[0, 1]:.2f}")
shown(sightline.side_by_side([grey, black], same_scale=False), "integrated gradients from grey and from black", 1100)

# %% [markdown]
# The left map is from grey, the right one from black. What is black in the photograph can get nothing from a black baseline: the method multiplies by how
# far the pixel moved. So **say the baseline with the map**. Sightline does, under each.
#
# ## Nothing but questions
#
# These methods never look inside. They hide parts of the picture and listen to the score, so that they also explain [a model behind a network or in another
# program](../black-boxes.md).
#
# - **LIME** cuts the picture into *superpixels*, regions of even colour, hides some at random, and fits a straight line to the answers.
# - **SHAP** (here Kernel SHAP) does the same with weights that make each number a *Shapley value*: the region's fair share of what the picture adds to the
#   score. It promises that the shares add up.
# - **RISE** lays random soft masks on the picture, and takes the mean of the masks, weighted by the score.

# %%
asked("lime", samples=150, segments=30)
asked("kernel-shap", samples=150, segments=30)
asked("rise", samples=80)
few = maps["rise"]
asked("rise", samples=320)
beside("lime", "kernel-shap", "rise")

# %%
print(f"lime: its straight line follows {maps['lime'].details['fit']:.0%} of what the score does (weighted R^2)")
shares = maps["kernel-shap"].details["coefficients"]
error = maps["kernel-shap"].details["standard error"]
added = maps["kernel-shap"].details["rise"]
print(f"kernel-shap: {len(shares)} shares add up to {shares.sum():.4f}; the picture adds {added:.4f} to the score")
print(f"             largest share {np.abs(shares).max():.2f}, largest standard error {error.max():.2f}")
for found, masks in ((few, 80), (maps["rise"], 320)):
    largest, error = np.abs(found.raw).max(), found.details["standard error"].max()
    alike = found.details["convergence"]["agreement"][-1]
    print(
        f"rise, {masks} masks: largest value {largest:.2f}, largest standard error {error:.3f}; two halves of the masks correlate by {alike:.2f}"
    )

# %% [markdown]
# Read the last two lines together. The standard error of RISE falls with the square root of the number of masks, so four times as many halve it; the paper
# takes 4000 to 8000. Where the error is as large as the value, the map shows the draw and not the model. A low R^2 of LIME says that no straight line is
# like this model here. Then its map is a poor likeness, however clear it looks. The picture below has the error beside the map.

# %%
shown(maps["rise"].panel(), "the map of rise, its standard error, and how far it has settled", 1000)

# %% [markdown]
# ## What each costs
#
# Pictures shown to the model, and seconds on this machine. Methods that need gradients also go backwards through the model for each of them, which costs
# about as much again, or twice.

# %%
for name, (pictures, seconds) in sorted(costs.items(), key=lambda one: one[1][1]):
    print(f"{name:22} {pictures:5} pictures {seconds:7.2f} s")

# %% [markdown]
# ## Where they agree
#
# Each pair of maps is compared on a coarse grid by *rank correlation*: 1 where they put all places in the same order, 0 where they have nothing in common.
# Methods that say nothing of the class are left out of the median, and so is a map that occurs twice.

# %%
agreement = sightline.agreement(list(maps.values()))
print(agreement.says)
shown(agreement.picture(), "how far each pair of methods agrees", 900)

# %% [markdown]
# Agreement is no proof: methods that are made alike agree when they are wrong alike. Disagreement is a warning: the methods ask different questions, and
# none of their maps alone may be shown as *the* reason.
#
# ## Trust cards
#
# `heatmap.trust()` asks the model about 60 more times. Does the score follow the map, more than maps that know nothing? Is it about *this* class? Does the
# map change when what the model has learned is made random? Do other kinds of methods say the same? Each answer has a rule, and the verdict names the checks
# that decided.

# %%
cards = {
    name: maps[name].trust()
    for name in ("grad-cam", "saliency", "guided-backprop", "integrated-gradients", "kernel-shap", "rise")
}
checks = [one.name for one in next(iter(cards.values())).checks]
print(" " * 21 + "".join(f"{name:>19}" for name in checks) + "  pictures   verdict")
for name, card in cards.items():
    outcomes = {one.name: one.outcome for one in card.checks}
    print(
        f"{name:21}"
        + "".join(f"{outcomes.get(check, '-'):>19}" for check in checks)
        + f"{card.forwards:>10}   {card.verdict}"
    )

# %%
print("guided-backprop:", cards["guided-backprop"].because)
print(
    *(f"   {one.name}: {one.says}" for one in cards["guided-backprop"].checks if one.outcome in ("failed", "doubtful")),
    sep="\n",
)
shown(cards["grad-cam"].panel(), "the trust card of grad-cam", 1000)

# %% [markdown]
# Read a row as a list of reasons, not as a mark. *Not run* means that the check would have cost too much for a method that asks many times;
# `trust(full=True)` runs it. *Weak* is common and honest: where the object lies in the middle of the photograph, a blob in the middle is hard to beat.
# *Supported* only says that these checks were passed.
#
# **Look at guided backprop again.** A map like this convinces many people, because it follows what they see themselves. Randomisation is the check that it
# is known to fail: its map hardly changes when the upper layers of the model are made random. It shows edges of the photograph, and those were there before
# the model had learned anything. The lines above the card say how it came out on this photograph. How convincing a map looks says nothing about whether it
# is true.
#
# ## A vision transformer
#
# A *transformer* cuts the picture into patches and lets each look at all others (*attention*). The weights of real ones are downloads, so that this page
# can't show one offline. A large one with random weights would be no better: its maps mean nothing. So here is a very small one that has really learned
# something: you train it, in seconds, to tell the colour of one object in drawn scenes. There it is known where the object lies, and a map can be *marked*
# instead of admired.


# %%
def small_transformer(steps: int = 300) -> torch.nn.Module:
    """A transformer of two blocks that tells the colours of objects in drawn scenes."""
    from timm.models.vision_transformer import VisionTransformer

    scenes = draw(3000, seed=1)
    inputs, wanted = torch.from_numpy(scenes.pictures) * 2 - 1, F.one_hot(torch.from_numpy(scenes.classes)).float()
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=SIDE,
        patch_size=6,
        num_classes=len(COLOURS),
        embed_dim=48,
        depth=2,
        num_heads=3,
        mlp_ratio=2,
        patch_drop_rate=0.5,  # half of the patches are left out while it learns
    )
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps, pct_start=0.2)
    for _ in range(steps):
        some = torch.randint(len(inputs), (64,))
        optimiser.zero_grad()
        F.binary_cross_entropy_with_logits(network(inputs[some]), wanted[some]).backward()
        optimiser.step()
        schedule.step()
    network.patch_drop = torch.nn.Identity()
    return network.eval()


network, unseen = small_transformer(), draw(64, seed=9)
x = torch.from_numpy(unseen.pictures) * 2 - 1
with torch.inference_mode():
    right = (network(x).argmax(dim=1).numpy() == unseen.classes).mean()
print(f"{right:.0%} of {len(x)} unseen scenes right")

# %%
print(f"{unseen.masks.mean():6.1%} of a picture is the object: so much of an even map lies on it")
FOLLOWED = ["grad-cam", "hires-cam", "attention-grad", "attention-rollout"]
for name in FOLLOWED:
    found = sightline.attribute(x, network, method=name, target=unseen.classes.tolist()).detach().clamp_min(0)
    heat = F.interpolate(found[:, None], (SIDE, SIDE), mode="nearest")[:, 0].numpy()
    on_object = (heat * unseen.masks).sum(axis=(1, 2)) / np.maximum(heat.sum(axis=(1, 2)), 1e-12)
    print(f"{on_object.mean():6.1%} of the heat of {name} lies on the object (mean of {len(heat)} scenes)")


# %%
def prepared(scene: Image.Image) -> torch.Tensor:
    """The scene as the small network takes it."""
    values = np.asarray(scene.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255
    return torch.from_numpy(values).permute(2, 0, 1) * 2 - 1


colours = ("red", "green", "blue", "yellow")
small = sightline.adapt(network, preprocess=prepared, labels=colours, name="a very small transformer")
values = (unseen.pictures[0].transpose(1, 2, 0) * 255).round().astype(np.uint8)
scene = Image.fromarray(values).resize((SIDE * 8, SIDE * 8), Image.Resampling.NEAREST)
followed = sightline.compare(scene, small, methods=FOLLOWED, targets=[int(unseen.classes[0])], same_scale=False)
shown(
    sightline.side_by_side(followed, same_scale=False),
    f"one scene, in which the object is {colours[unseen.classes[0]]}: four maps",
    1100,
)

# %% [markdown]
# There is no *reshape* to write: Sightline finds out which token stands for which place by changing small places and looking what moves. *Attention rollout*
# follows where tokens looked, whatever was asked; *attention-grad* counts only attention that raised the score. Compare their two figures above. One tiny
# network doesn't rank methods, but it shows what being *marked* looks like. [Vision transformers](../transformers.md) has more, and `sightline explain
# photo.jpg --model timm:vit_base_patch16_224` is the real thing, once the weights can be downloaded.
#
# ## Three questions
#
# **1.** The map of Integrated Gradients sums to the score's rise to within 0.1 %. Is it right?
#
# <details><summary>An answer</summary>
#
# The integral was computed well: there were steps enough. It is complete for *its* baseline. Another baseline gives another map that is just as complete. So
# the sum checks the arithmetic, and not whether the question was a good one.
#
# </details>
#
# **2.** Two runs of RISE with different seeds show their strongest place in different corners. What do you do?
#
# <details><summary>An answer</summary>
#
# Look at the standard error beside the largest value. If the two are about equal, the masks were too few: take four times as many, and the error halves. If
# it stays so, the score hangs on nothing that these masks can hide alone, and no map of RISE should be shown.
#
# </details>
#
# **3.** You may look into the model, and have one second. Which method do you take, and what do you say beside the map?
#
# <details><summary>An answer</summary>
#
# HiResCAM or Grad-CAM: the table of costs shows that they take one pass. Say the layer and its coarse grid, the class that was asked for, and that a map
# shows where evidence lies, not what caused the answer. With a few seconds more: the trust card.
#
# </details>
#
# ## Where to read on
#
# - [Methods](../methods.md): all of them, with formula, cost, and where other libraries differ.
# - [How far to believe a picture](../trust.md): the checks of the trust card, and their rules.
# - [The audit](../audit.md): from one map to what a model goes by over a whole data set.
# - [Black boxes](../black-boxes.md), [Vision transformers](../transformers.md), [Ground truth for heat maps](../testing.md).
