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
# # When it guesses
#
# A model always answers, and a heat map can always be drawn. Neither tells you that the answer is worth anything. This notebook collects the signs of a guess:
# ambiguous pictures, low confidence, no evidence, methods and layers that disagree. At the end they come together on the **trust card**.
#
# Know [Grad-CAM step by step](grad-cam-step-by-step.ipynb) first. The words "logit" and "softmax" are explained in [Which class?](which-class.ipynb)
#
# The pictures come with the library. With photographs of your own (`SIGHTLINE_PHOTOS=folder`) an iguana, a sliding door and horses are taken from there;
# the sentences that are printed follow the pictures.

# %%
import matplotlib.pyplot as plt
import numpy as np
from pictures import draw, photo
from PIL import Image, ImageOps

import sightline

chance = np.random.default_rng(0)
pictures = {
    "clear": photo("iguana", otherwise="coffee"),
    "doubtful": photo("sliding door", otherwise="cat"),
    "strange": photo("horses", otherwise="rocket"),
    "noise": Image.fromarray(chance.integers(0, 256, (300, 300, 3), dtype=np.uint8)),
    "mosaic": Image.fromarray(chance.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
        (300, 300), Image.Resampling.NEAREST
    ),
    "grey": Image.new("RGB", (300, 300), (124, 116, 104)),
}
pictures = {name: ImageOps.fit(image, (300, 300)) for name, image in pictures.items()}  # squares, all of one size
draw(list(pictures.values()), list(pictures), columns=6)

# %% [markdown]
# Three photographs, and three pictures with nothing in them, drawn by the computer. The model knows 1,000 things, and none of them is in the last three.
#
# ## 1. It always answers
#
# How sure is the model? Its highest probability is one figure. Another is the **number of classes that it hesitates between**: `exp(H)`, where `H`, minus the sum of all `p * log(p)`, is the entropy of its
# probabilities. It is 1 when all is on one class, and 1,000 when all classes are equal.

# %%
model = sightline.load_model("bundled")
looks = {name: sightline.look(image, model) for name, image in pictures.items()}
maps = {name: sightline.explain(seen) for name, seen in looks.items()}


def hesitates(seen):
    """Between how many classes the model hesitates: e to the entropy of its probabilities."""
    logits = seen.captures[0].output[0].detach().double()
    return (-(logits.softmax(0) * logits.log_softmax(0)).sum()).exp().item()


def half(heatmap):
    """How many cells it takes, strongest first, until they hold half of the heat."""
    cells = np.sort(heatmap.raw.ravel())[::-1]
    return int(np.searchsorted(cells.cumsum(), cells.sum() / 2)) + 1


print("picture    it says                probability   hesitates between   highest cell   half of the heat")
for name, one in maps.items():
    print(
        f"{name:10} {one.label:22} {one.probability:8.1%} {hesitates(looks[name]):12.1f} classes"
        f" {one.evidence:14.3f} {half(one):8} of {one.raw.size} cells"
    )

# %% [markdown]
# Now the maps, first as most tools draw them: each stretched until its own highest value is bright.

# %%
titles = [f"{name}:\n{one.title()}" for name, one in maps.items()]
draw([one.overlay() for one in maps.values()], titles, columns=6)
spots = {name: half(one) for name, one in maps.items()}
print(
    f"cells that hold half of the heat: {spots['clear']} in the clear picture, {spots['noise']} in noise, {spots['mosaic']} in the mosaic,"
)
print(
    f"{spots['grey']} in plain grey; a map that is the same everywhere would need {(maps['clear'].raw.size + 1) // 2}"
)

# %% [markdown]
# Stretched like this, every map has a bright spot, also those of pictures with nothing in them. So a bright, tidy spot is no sign of knowledge. Now the same maps on one scale:

# %%
shared = sightline.share_scale(list(maps.values()))
draw([one.overlay() for one in shared], titles, columns=6)
strongest = max(maps.values(), key=lambda one: one.evidence)
for name in ("noise", "mosaic", "grey"):
    print(f"{name}: its highest cell is {maps[name].evidence / strongest.evidence:.0%} of that of {strongest.label}")
print()
for name, one in maps.items():
    print(f"{name}: " + ("; ".join(one.warnings) or "nothing to warn of"))

# %% [markdown]
# Read the warnings before the picture. They stand under every panel that the library draws.
#
# **A doubt about words, or about the picture?** When the first classes are near relatives, the model may be sure of the thing and unsure of its name.
# Then the maps of the first two classes lie on the same places. When it has no idea, they may lie anywhere.

# %%
for name, seen in looks.items():
    one, other = sightline.compare(seen, methods=["grad-cam"], targets=[p.index for p in seen.predictions[:2]])
    alike = np.corrcoef(one.raw.ravel(), other.raw.ravel())[0, 1]
    print(f"{name:10} {one.title():28} {other.title():28} their maps correlate by {alike:5.2f}")

# %% [markdown]
# ## 2. The picture fades
#
# We take the evidence away, a little at a time: the clear picture is mixed with grey, from all of it to nothing. What happens to the answer, and what to the map?

# %%
clear = pictures["clear"]
grey = Image.new("RGB", clear.size, (124, 116, 104))
shares = [1, 0.8, 0.6, 0.4, 0.3, 0.2, 0.1, 0]
first = maps["clear"]
faded = [sightline.explain(Image.blend(grey, clear, share), model, target=first.index) for share in shares]
alike = [np.corrcoef(one.raw.ravel(), first.raw.ravel())[0, 1] for one in faded]

figure, place = plt.subplots(figsize=(9, 3), layout="constrained")
place.plot(shares, [one.probability for one in faded], "o-", label=f"probability of {first.label}")
place.plot(
    shares, [one.evidence / first.evidence for one in faded], "o-", label="highest cell, as a share of the first"
)
place.plot(shares, alike, "o-", label="correlation with the first map")
place.set_xlabel("how much of the picture is left")
place.invert_xaxis()
place.legend()
plt.show()
some = [0, 2, 4, 6]
draw(
    [faded[at].overlay() for at in some],
    [f"{shares[at]:.0%} left: {faded[at].title()}\nhighest {faded[at].evidence:.3f}" for at in some],
)

for share, one, r in zip(shares, faded, alike, strict=True):
    print(
        f"{share:4.0%} left: it says {one.predictions[0].label!r}; {one.label}: {one.probability:6.1%}, highest cell {one.evidence:.3f}, map correlates by {r:.2f}"
    )
lost = next((share for share, one in zip(shares, faded, strict=True) if one.predictions[0].index != first.index), None)
if lost is None:
    print("The answer stays to the end.")
else:
    at = shares.index(lost)
    print(
        f"The answer changes when {lost:.0%} is left. There the map still correlates with the first one by {alike[at]:.2f},"
    )
    print(
        f"and stretched to its own maximum it is as bright as ever, though its highest cell is {faded[at].evidence / first.evidence:.0%} of the first."
    )

# %% [markdown]
# Place and strength are two things. A map may stay at its place long after the model has lost its confidence, or leave it. The colours of a stretched map tell you neither.
# (The overlays above are stretched, too, each to its own maximum.) Look at the probability, and at the highest value in the colour key.
#
# ## 3. No evidence at all
#
# Ask the clear picture for all 1,000 classes, and take the one whose map has the least in it. The library doesn't make something of it.

# %%
seen = looks["clear"]
everything = [
    sightline.attribute(seen.captures[0], model, target=k).max().item() for k in range(len(seen.captures[0].output[0]))
]
least = int(np.argmin(everything))
empty = sightline.explain(seen, target=least)
print(
    f"{sum(value <= 0 for value in everything)} of {len(everything)} classes have an empty map in this picture; the least is {empty.label}"
)
for warning in empty.warnings:
    print("   it says:", warning)
empty.panel()

# %% [markdown]
# A map counts as *nearly empty against the score* by this rule: had every cell the map's highest value, all of them together would not make up 1 % of the score. Such a map is never stretched until it looks full.
#
# ## 4. Do the methods agree?
#
# Methods that work in different ways should find the same places. `sightline.agreement` compares every pair: 1 is the same order of places, 0 is no relation.
# Here two methods use gradients at the layer, one asks the end of the model again (recipro-cam), one hides parts of the picture (occlusion), one uses gradients of the pixels.
# Maps that come out as one and the same count once.

# %%
methods = ["grad-cam", "grad-cam++", "recipro-cam", "occlusion", "integrated-gradients"]
coarse = {"patch": 56, "stride": 28, "steps": 10}  # few questions, so that it takes seconds
compared = {
    name: sightline.compare(looks[name], methods=methods, options=coarse) for name in ("clear", "doubtful", "noise")
}
agreed = {name: sightline.agreement(several) for name, several in compared.items()}
for name, one in agreed.items():
    print(f"{name}: {one.flagged()}\n")
draw(
    [one.overlay() for several in compared.values() for one in several],
    [f"{name}: {one.label}\n{one.method}" for name, several in compared.items() for one in several],
    columns=5,
)

# %%
agreed["doubtful"].picture()

# %% [markdown]
# Maps that disagree can't all be right, and you don't know which is. But **agreement is no proof** of a good answer, and disagreement none of a bad one. Look at what was printed for noise and for the clear picture:

# %%
of_noise = agreed["noise"]
if of_noise.median is not None and not of_noise.disagree:
    print(f"In noise the methods agree (median {of_noise.median:.2f}), on a {of_noise.target} that isn't there.")
    print("They agree about what moved the score. Nobody asked whether the score is worth anything.")
else:
    print(f"In noise the methods disagree about {of_noise.target}.")
of_clear = agreed["clear"]
if of_clear.disagree and maps["clear"].probability >= 0.5:
    print(f"In the clear picture they disagree, too, though the model is sure of {of_clear.target}:")
    print("it is the maps that are in doubt there, not the answer.")

# %% [markdown]
# ## 5. Do the layers agree?
#
# One method, all resolutions of the network, from its first layers to its last.

# %%
layers = sightline.compare(clear, model, methods=["grad-cam"], layer="all")
draw(
    [one.overlay() for one in layers],
    [f"{one.layer}: {one.raw.shape[0]} x {one.raw.shape[1]} cells\nhighest {one.evidence:.3g}" for one in layers],
    columns=5,
)
between = sightline.agreement(layers)
neighbours = [between.matrix[at, at + 1] for at in range(len(layers) - 1)]
print(f"median correlation of all pairs of layers: {between.median:.2f}")
print("each with the next: " + ", ".join(f"{one:.2f}" for one in neighbours))
print(f"the last layer, which is the default, with each: {', '.join(f'{one:.2f}' for one in between.matrix[-1, :-1])}")

# %% [markdown]
# Layers of one network do not see the same things. The first ones see edges and colours, with gradients that change from cell to cell, and Grad-CAM averages these away. Their maps are answers to
# another question, and a low correlation between first and last is normal. So: don't choose the layer whose map you like. Take the default, and say which it was.
#
# ## 6. The trust card
#
# All of this is too much to do by hand for each picture. `heatmap.trust()` asks the model some more times: does the score follow the map, more than it follows random maps and a blob in the middle?
# Is the map about this class, and about what the model has learned? Do other kinds of methods agree?

# %%
cards = {name: maps[name].trust() for name in ("clear", "doubtful", "strange", "noise", "grey")}
questions = [one.name for one in cards["clear"].checks]
print(f"{'':10}" + "".join(f"{one:20}" for one in [*questions, "verdict"]))
for name, card in cards.items():
    print(f"{name:10}" + "".join(f"{one:20}" for one in [*(check.outcome for check in card.checks), card.verdict]))
print(f"pictures shown to the model for the first card: {cards['clear'].forwards}")
cards["clear"].panel()

# %%
cards["noise"].panel()

# %% [markdown]
# The card judges the *map*: does it truly show what moved the score? It does not judge the *answer*. A good map of a guess is still a map of a guess. So read both:

# %%
for name, card in cards.items():
    one = maps[name]
    sure = one.probability >= 0.5
    print(
        f"{name:10} {one.title():22} map {card.verdict}: "
        + {
            (True, True): "the model is sure, and the map passed",
            (True, False): "the model is sure, but don't lean on this map",
            (False, True): "the map passed, but the answer itself is in doubt",
            (False, False): "the answer is in doubt, and so is the map",
        }[sure, card.verdict == "supported"]
    )

# %% [markdown]
# Even "sure" is not "right": a model can be sure and wrong, and a picture of nothing would get a sure answer from another model. What a map can't tell you is in
# [Ideas](../ideas/index.md).
#
# ## Questions
#
# **1.** The model says "kite, 3 %" of a picture, and the map has one tidy bright spot. What do you tell your colleague who wants to publish the picture?
#
# <details><summary>Answer</summary>
#
# That the spot is bright because the map was stretched. Show the map beside one of a sure answer on one scale, with the 3 %, and with the library's warnings. A map of a guess is not wrong, but it
# explains a guess.
#
# </details>
#
# **2.** Five methods agree about a picture. Is the map to be believed?
#
# <details><summary>Answer</summary>
#
# It is a good sign that they show what moved the score. It is none that the answer is right, and none that the model looks at the thing for a good reason: all five would agree about a shortcut,
# such as a watermark, as well. To find such, go over many pictures: [audit](../audit.md).
#
# </details>
#
# **3.** You have tried nine layers and like the map of the fourth best. May you show it?
#
# <details><summary>Answer</summary>
#
# Only if you say that you tried nine, and why this one. Choosing by looks makes the map an illustration of what you believed before. Choose before you look, or by a measure: [Evaluation](../evaluation.md).
#
# </details>
#
# ## Read on
#
# - [How far to believe a picture](../trust.md): each check with its rule.
# - [Metrics](../metrics.md): the measures behind the card.
# - [Ground truth](../testing.md): models and pictures where the right map is known.
# - [Which class?](which-class.ipynb)
