# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Grad-CAM step by step
#
# A model looks at a photograph and says "cat". *Where* in the photograph did it find the cat? **Grad-CAM** answers with a heat map.
# It needs one run of the model forwards, one backwards, and a little arithmetic.
#
# Here you do each step yourself, in plain PyTorch, and draw what comes out. At the end stands the one line of `sightline` that does the same,
# and a check that both are equal. You need to know what a convolution is; everything else is explained.
#
# The pictures come with the library. If you have photographs of a shark, an elephant or an iguana, put them into a folder, with the animal's name
# in the file's name, and start the notebook with `SIGHTLINE_PHOTOS=that/folder`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from pictures import draw, photo

import sightline

image = photo("shark", otherwise="cat")
model = sightline.load_model("bundled")
print(f"{model.name}: {type(model.module).__name__}, {sum(p.numel() for p in model.module.parameters()):,} weights")

# %% [markdown]
# `model` knows how to speak to one network: `model.module` is the PyTorch module, `model.preprocess` turns a photograph into its input,
# `model.label(7)` is the name of class 7, `model.layer` the layer that we look at.
#
# ## 1. The input
#
# A network takes pictures of one size. The photograph is scaled, cut to a square in the middle, and its colours are shifted so that they lie around 0.
# What is cut off here, the network never sees.

# %%
x, view = model.preprocess(image)
x = x[None].requires_grad_()  # a batch of one picture; its gradients are asked for in step 4
print("photograph (width, height):", image.size)
print("input (batch, colours, height, width):", tuple(x.shape))
print(f"the network sees {view.seen_share():.0%} of the photograph")

shown = ((x[0] - x.min()) / (x.max() - x.min())).detach()  # to 0..1, only to draw it
draw([image, shown.permute(1, 2, 0).numpy()], ["the photograph", "what the network gets"], columns=3)

# %% [markdown]
# ## 2. The forward pass
#
# The network gives one number for each class, its **logit**. Higher means more evidence. **Softmax** turns all logits into probabilities:
# it takes `exp(logit)` of each and divides by their sum.
#
# While it runs, we keep what one layer says. A **forward hook** is a function that PyTorch calls with a layer's output.

# %%
kept = []
hook = model.module.get_submodule(model.layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
logits = model.module(x)
hook.remove()
activations = kept[0]

probabilities = logits.softmax(dim=1)[0].detach()
best = probabilities.argsort(descending=True)[:5]
for index in best:
    print(f"{model.label(int(index)):25} logit {logits[0, index].item():5.2f}   probability {probabilities[index]:.3f}")
target = int(best[0])

figure, place = plt.subplots(figsize=(7, 2), layout="constrained")
place.barh([model.label(int(i)) for i in best][::-1], probabilities[best].flip(0))
place.set_xlabel("probability")
plt.show()

# %% [markdown]
# The first of these classes is our **target**: we ask what in the picture speaks for it. Any other class can be asked for in the same way;
# that is the next notebook, [Which class?](which-class.ipynb)
#
# ## 3. Feature maps
#
# The layer's output is a stack of small pictures, its **feature maps** or channels. Each channel has learned to react to something: an edge, fur, an eye, a wheel.
# A bright cell says: here is what I look for. We take the *last* layer that still has a grid. There the channels mean most, and the grid still says where.

# %%
channels, height, width = activations.shape[1:]
print(f"layer {model.layer} ({model.layer_reason})")
print(f"{channels} channels of {height} x {width} cells")
print(f"{(activations[0].amax(dim=(1, 2)) > 0).sum().item()} of them react somewhere in this picture")

strongest = activations[0].mean(dim=(1, 2)).argsort(descending=True)[:8].tolist()
draw(
    [activations[0, k].detach().numpy() for k in strongest],
    [f"channel {k}, mean {activations[0, k].mean().item():.2f}" for k in strongest],
    columns=4,
    lowest=0,
)

# %% [markdown]
# These are the eight channels that react most, over the whole grid. Strong is not the same as important: a channel may shout about grass while we ask for a cat.
# Which channels count for *our* class?
#
# ## 4. Gradients
#
# The **gradient** of the target's logit with respect to a cell says: if this cell were a little higher, how much would the logit rise?
# `torch.autograd.grad` gives one such number for each cell of each channel.

# %%
# retain_graph: the forward pass is asked again in step 7
(gradients,) = torch.autograd.grad(logits[0, target], activations, retain_graph=True)
print("gradients:", tuple(gradients.shape))

spread = (gradients.amax(dim=(2, 3)) - gradients.amin(dim=(2, 3))).abs().max().item()
print(f"within one channel they differ by at most {spread:.2g}; between channels by {np.ptp(gradients.numpy()):.2g}")
assert spread < 1e-6

limit = gradients[0, strongest].abs().max().item()
draw(
    [gradients[0, k].numpy() for k in strongest],
    [f"channel {k}: {gradients[0, k].mean().item():+.4f}" for k in strongest],
    columns=4,
    colours="RdBu_r",
    lowest=-limit,
    highest=limit,
)

# %% [markdown]
# Red raises the logit, blue lowers it. Each channel is of one colour: after this layer the network only takes the mean of each channel and adds the means up,
# each with a weight. So all cells of a channel count the same. In a network with more layers behind, they would differ from cell to cell.
#
# ## 5. Pooled weights
#
# Grad-CAM takes the mean of a channel's gradients as the channel's **weight**: how much it counts for the target.
#
# ```text
# weight of channel k = mean over all cells (i, j) of  d logit / d A_k(i, j)
# ```

# %%
weights = gradients.mean(dim=(2, 3))[0]
print(
    f"{(weights > 0).sum().item()} channels speak for {model.label(target)!r}, {(weights < 0).sum().item()} against it"
)

figure, place = plt.subplots(figsize=(9, 2.4), layout="constrained")
place.bar(range(channels), weights.sort(descending=True).values, width=1)
place.axhline(0, color="black", linewidth=0.5)
place.set_xlabel("channels, sorted by weight")
place.set_ylabel("weight")
plt.show()

# %% [markdown]
# ## 6. The weighted sum
#
# Each channel times its weight, and all of them added up. Below, the sum grows: first only the channel that contributes most, then the first five, and so on.

# %%
weighted = weights[:, None, None] * activations[0].detach()
order = weighted.abs().sum(dim=(1, 2)).argsort(descending=True)
counts = [1, 5, 25, 125, channels]
sums = [weighted[order[:count]].sum(dim=0) for count in counts]
signed = weighted.sum(dim=0)

alike = [np.corrcoef(one.flatten(), signed.flatten())[0, 1] for one in sums]
limit = max(one.abs().max().item() for one in sums)
draw(
    [one.numpy() for one in sums],
    [f"channels: {count}\ncorrelates by {r:.2f}\nwith all" for count, r in zip(counts, alike, strict=True)],
    columns=5,
    colours="RdBu_r",
    lowest=-limit,
    highest=limit,
)
print(
    f"it takes {counts[np.argmax(np.array(alike) > 0.9)]} channels of these steps until the map correlates by more than 0.9"
)

# %% [markdown]
# The map is what many channels say together.
#
# What do the values mean? In *this* network they can be added up: the sum of the whole map, and the last layer's own constant (its bias), make the logit.

# %%
bias = model.module.get_classifier().bias[target].item()
print(f"sum of the map {signed.sum().item():.3f} + bias {bias:.3f} = {signed.sum().item() + bias:.3f}")
print(f"the logit is                       {logits[0, target].item():.3f}")
np.testing.assert_allclose(signed.sum().item() + bias, logits[0, target].item(), rtol=1e-4)

# %% [markdown]
# So a cell's value is the part of the score that comes from there. That is why `sightline` doesn't stretch maps between 0 and 1: a weak map must look weak.
# (In networks that go on behind the layer the sum no longer holds; the unit stays.)
#
# ## 7. ReLU
#
# What lies below 0 speaks *against* the class. Grad-CAM cuts it off: **ReLU** keeps what is positive. The idea of its authors: we asked what speaks *for* the class.
#
# To see it at work we make the same map for a second class that has nothing to do with the picture, a dogsled. Only step 4 changes; the forward pass is the same.

# %%
heat = signed.relu()

dogsled = model.labels.index("dogsled")
(sled_gradients,) = torch.autograd.grad(logits[0, dogsled], activations)
sled = (sled_gradients.mean(dim=(2, 3))[0][:, None, None] * activations[0].detach()).sum(dim=0)

limit = signed.abs().max().item()
figure, places = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
for two, one, name in ((places[:2], signed, model.label(target)), (places[2:], sled, "dogsled")):
    cut = (-one).relu().sum().item() / one.abs().sum().item()
    print(f"{name}: highest {one.max().item():.3f}; {(one < 0).sum().item()} of {one.numel()} cells are below 0,")
    print(f"   {cut:.0%} of all that the map holds, for or against, is cut")
    two[0].imshow(one, cmap="RdBu_r", vmin=-limit, vmax=limit)
    two[0].set_title(f"{name}:\nfor (red), against (blue)", fontsize=8)
    two[1].imshow(one.relu(), cmap="inferno", vmin=0, vmax=limit)
    two[1].set_title("after ReLU", fontsize=8)
for place in places:
    place.axis("off")
plt.show()

# %% [markdown]
# All four are drawn on one scale.
# If a large part is cut, ask for it: the method `hires-cam` shows both signs. `sightline` warns when more than half is cut.
#
# ## 8. The overlay
#
# The map has few cells, the photograph many pixels. We enlarge the map to the size of the network's input and lay it over that.

# %%
large = torch.nn.functional.interpolate(heat[None, None], size=x.shape[2:], mode="bilinear", align_corners=False)[0, 0]
figure, places = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for place, title in zip(places, ["the input", f"the map, {height} x {width}, enlarged", "the overlay"], strict=True):
    place.set_title(title, fontsize=9)
    place.axis("off")
places[0].imshow(shown.permute(1, 2, 0))
places[1].imshow(large, cmap="inferno", vmin=0)
places[2].imshow(shown.permute(1, 2, 0))
places[2].imshow(large, cmap="inferno", vmin=0, alpha=0.5)
plt.show()

# %% [markdown]
# The soft edges come from the enlarging. They are no contours of the object: the network told us one value for each cell, and one cell is as large as this:

# %%
cell = 1 / (height * width)
print(
    f"one cell is {cell:.1%} of what the network saw: {x.shape[2] // height} x {x.shape[3] // width} pixels of its input"
)

# %% [markdown]
# ## 9. The same in one line
#
# This is what the library does, and it puts the map back on the *photograph*: what the network never saw is hatched.

# %%
heatmap = sightline.explain(image, model)

np.testing.assert_allclose(heatmap.raw, heat.numpy(), rtol=1e-4, atol=1e-6)
assert heatmap.index == target
print("equal to the map that was made by hand:", heatmap.title())
heatmap.panel()

# %% [markdown]
# ## 10. Other networks
#
# Nothing in the steps above is special to this network. Here they stand in one function, tried on VGG-19 and ResNet-50 of torchvision. Their official weights are
# downloaded where there is a network. Without one, the library says what to do; we then take **random weights**, only to see that the arithmetic is the same.


# %%
def grad_cam(module, layer, x, index):
    """The map (h, w) of one class, by hand."""
    kept, x = [], x.clone().requires_grad_()
    hook = module.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = module(x)
    hook.remove()
    (gradients,) = torch.autograd.grad(logits[0, index], kept[0])
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    return (weights * kept[0].detach()).sum(dim=1)[0].relu()


def loaded(name):
    """The model with its official weights, or with random ones where these can't be had."""
    try:
        return sightline.load_model(name), ""
    except sightline.SightlineError as error:
        said = str(error)
        print(said.partition(" from ")[0] + ".", said.partition(". ")[2], "\n")
    torch.manual_seed(0)
    return sightline.load_model(name, random_weights=True), "\nrandom weights: the map means nothing"


overlays, titles = [heatmap.overlay()], [f"bundled: {heatmap.title()}"]
for name in ("torchvision:vgg19", "torchvision:resnet50"):
    other, caution = loaded(name)
    found = sightline.explain(image, other)
    by_hand = grad_cam(other.module, other.layer, other.preprocess(image)[0][None], found.index)
    np.testing.assert_allclose(found.raw, by_hand.numpy(), rtol=1e-3, atol=1e-4 * found.raw.max())
    print(f"{name}, layer {other.layer}, {found.raw.shape[0]} x {found.raw.shape[1]} cells: equal to the map by hand")
    for warning in found.warnings:
        print("   it says:", warning)
    overlays.append(found.overlay())
    titles.append(f"{name}: {found.title()}{caution}")
draw(overlays, titles, columns=3)

# %% [markdown]
# A picture of random weights can look as tidy as a real one. Remember that when somebody shows you a heat map: it looks convincing before you know anything about the model.
# The check for it is called *randomisation*, see [How far to believe a picture](../trust.md).
#
# ## 11. Your turn: shark, elephant, iguana, and a photograph of your own
#
# Write the path of a photograph of your own in place of `"mine"`. Each map is made by hand and by the library, and compared.

# %%
mine = "mine"  # such as "holiday/dog.jpg"
overlays, titles = [], []
for name, otherwise in (("shark", "cat"), ("elephant", "coffee"), ("iguana", "rocket"), (mine, "cat")):
    one = photo(name, otherwise)
    found = sightline.explain(one, model)
    by_hand = grad_cam(model.module, model.layer, model.preprocess(one)[0][None], found.index)
    np.testing.assert_allclose(found.raw, by_hand.numpy(), rtol=1e-4, atol=1e-6)
    x_peak, y_peak = found.peak
    print(
        f"   {found.title()}; strongest at {x_peak / one.width:.0%} from the left, {y_peak / one.height:.0%} from the top"
    )
    for warning in found.warnings:
        print("   it says:", warning)
    overlays.append(found.overlay())
    titles.append(found.title())
draw(overlays, titles, columns=4)

# %% [markdown]
# ## Questions
#
# **1.** Why do we take the last layer with a grid, and not the first convolution?
#
# <details><summary>Answer</summary>
#
# The first layers see edges and colours; almost every class is made of these. The last ones see parts of objects, so that a weight per channel means something.
# The price is a coarse grid. See [choosing a layer](../ideas/choosing-a-layer.md) and try `sightline.compare(image, model, methods=["grad-cam"], layer="all")`.
#
# </details>
#
# **2.** In step 4 all gradients of a channel were equal. What would change in step 5 if they were not?
#
# <details><summary>Answer</summary>
#
# Grad-CAM would still take their mean, and so give a cell weight that it does not have by itself. The map could mark places that the network did not use.
# The method `hires-cam` multiplies cell by cell instead. Where all gradients of a channel are equal, both are the same map. `sightline` says so when they differ much.
#
# </details>
#
# **3.** You stretch the map of a class that is not in the picture until its highest value is 1. What does the reader believe?
#
# <details><summary>Answer</summary>
#
# That the model found it. A stretched map of nothing looks as bright as one of something. Always look at the highest value, or put both maps on one scale:
# [Which class?](which-class.ipynb)
#
# </details>
#
# ## Read on
#
# - [Which class?](which-class.ipynb): the same picture, other questions.
# - [When it guesses](when-it-guesses.ipynb): what a map looks like when the model has no idea.
# - [Methods](../methods.md): the formula of every method, and where it comes from.
# - [How far to believe a picture](../trust.md).
