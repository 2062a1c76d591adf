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
# # Which class?
#
# A heat map is an answer. Before you read it you must know the question: *which class* was asked for, and *which number* of the model was explained.
#
# Here we ask one picture many questions: two things that are in it, something in the background, something that is not there at all, and something that fools the model.
# Then we ask what speaks for one class *rather than* another. Know [Grad-CAM step by step](grad-cam-step-by-step.ipynb) first.
#
# The picture should hold two things. The shipped one is joined from two photographs. If you have a photograph called `dog-and-cat`, put it into a folder and start the notebook
# with `SIGHTLINE_PHOTOS=that/folder`; the words that are printed below follow the picture.

# %%
import matplotlib.pyplot as plt
import numpy as np
from pictures import SHIPPED, at_hand, draw, photo
from PIL import Image, ImageOps

import sightline

joined = Image.new("RGB", (400, 450))
for at, name in enumerate(("cat", "coffee")):
    part = sightline.read_image(SHIPPED / f"{name}.jpg")[0]
    joined.paste(ImageOps.fit(part, (400, 225)), (0, 225 * at))

image = photo("dog-and-cat", otherwise=joined)

# What a person sees in the picture. `corner` is where the background class is: left, top, right, bottom, as shares of width and height.
if at_hand("dog-and-cat"):
    upper, lower, background, corner = "bull mastiff", "tiger cat", "sliding door", (0, 0, 0.28, 0.75)
    there = {"dogs": range(151, 269), "cats": range(281, 286), "sliding door": [799]}
else:
    upper, lower, background, corner = "tiger cat", "espresso", "dining table", (0.75, 0.5, 1, 1)
    there = {"cats": range(281, 286), "espresso": [967], "cup": [968], "coffee mug": [504], "dining table": [532]}
print(f"in the upper half: {upper}; in the lower half: {lower}; in the background: {background}")

width, height = image.size
figure, place = plt.subplots(figsize=(4, 4), layout="constrained")
place.imshow(image)
left, top, right, bottom = (share * side for share, side in zip(corner, (width, height) * 2, strict=True))
place.plot([left, right, right, left, left], [top, top, bottom, bottom, top], "--", color="white")
place.set_title(f"dashed: where we look for {background}", fontsize=9)
place.axis("off")
plt.show()

# %% [markdown]
# ## What the model says
#
# `sightline.look` runs the model once. After that, any class can be asked for at almost no cost.
#
# The model gives each of its 1,000 classes a **logit**, a number without limits: the evidence for that class. **Softmax** makes probabilities of them.

# %%
model = sightline.load_model("bundled")
seen = sightline.look(image, model)
logits = seen.captures[0].output[0].detach()
probabilities = logits.softmax(dim=0)

for one in seen.predictions[:8]:
    print(f"{one.label:32} logit {logits[one.index].item():5.2f}   probability {one.probability:.3f}")
print(f"\nall {len(logits)} probabilities together: {probabilities.sum().item():.3f}")

first, second = seen.predictions[:2]
ratio = first.probability / second.probability
difference = (logits[first.index] - logits[second.index]).item()
print(
    f"{first.label} is {ratio:.2f} times as probable as {second.label}; e to the {difference:.3f} is {np.exp(difference):.2f}"
)
assert np.isclose(ratio, np.exp(difference), rtol=1e-3)

# %% [markdown]
# Two things follow from softmax.
#
# - **The probabilities share one cake.** When a picture holds two things, neither can have all of it. A low probability need not mean weak evidence. So we explain logits.
# - **There is no class "none of these".** The model must spread the whole cake, whatever the picture shows.
#
# ## Two things, two maps, one scale
#
# `sightline.compare` makes both maps. They are drawn on one scale: what looks twice as bright *is* twice as much of the score.


# %%
def share_in(heatmap, left, top, right, bottom):
    """How much of a map's heat lies in a part of the photograph, and how much of what the model saw does; 0 to 1."""
    width, height = heatmap.photo.size
    part = np.s_[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
    values, known = np.nan_to_num(heatmap.values), np.isfinite(heatmap.values)
    return float(values[part].sum() / max(values.sum(), 1e-12)), float(known[part].sum() / known.sum())


two = sightline.compare(seen, methods=["grad-cam"], targets=[upper, lower])
halves = [share_in(one, 0, 0, 1, 0.5)[0] for one in two]
for one, share in zip(two, halves, strict=True):
    print(
        f"{one.label:14} logit {one.score:5.2f}, highest cell {one.evidence:.3f}, {share:.0%} of its heat in the upper half"
    )
apart = halves[0] > 0.5 > halves[1]
print(
    "Each map is about its own thing." if apart else "The maps do NOT lie on their own things: don't trust them here."
)
sightline.side_by_side(two)

# %% [markdown]
# The picture is the same, the model is the same. Only the question differs. If both maps looked alike, they would show where *something* is, and not what speaks for *this* class.
#
# ## Something in the background
#
# The model was trained with one label for each picture, but it knows all its classes all the time. Ask for what stands around.

# %%
behind = sightline.explain(seen, target=background)
inside, size = share_in(behind, *corner)
print(
    f"{background}: logit {behind.score:.2f}, probability {behind.probability:.2%}, highest cell {behind.evidence:.3f}"
)
print(f"the dashed part is {size:.0%} of what the model saw, and has {inside:.0%} of this map's heat;")
others = [share_in(one, *corner)[0] for one in two]
print(" and ".join(f"{share:.0%} of that for {one.label}" for one, share in zip(two, others, strict=True)))
if inside > 1.5 * size:
    print("The map points at the background.")
elif inside > 2 * max(others):
    print("The map leans towards the background more than the others do, but most of its heat lies elsewhere.")
else:
    print("The map does not find the background.")
shared = sightline.share_scale([*two, behind])
draw(
    [*(one.overlay() for one in shared), behind.overlay()],
    [*(f"{one.label}, highest {one.evidence:.3f}" for one in shared), f"{background}, on its own scale"],
)

# %% [markdown]
# The first three are on one scale; where the background is pale there, the model has found less evidence for it. Only then look at the fourth, the same map stretched, to see *where*.
# The probability tells you nothing about this: the things in front take the cake, and leave almost none for what stands behind.
#
# ## Something that is not there
#
# No sensible map exists for a class that is not in the picture. What do we get for a dogsled?

# %%
sled = sightline.explain(seen, target="dogsled")
strongest = max(one.evidence for one in two)
print(
    f"dogsled: logit {sled.score:.2f}, highest cell {sled.evidence:.3f}, which is {sled.evidence / strongest:.0%} of the strongest map's"
)
for warning in sled.warnings:
    print("   it says:", warning)
draw(
    [sightline.share_scale([*two, sled])[-1].overlay(), sled.overlay()],
    ["dogsled, on the scale of the others", "the same map, stretched to its own maximum"],
    columns=2,
)

# %% [markdown]
# The left picture shows how much the model has found, beside what it found for the others. The right one is the very same map. A library that stretches every map
# shows you only the right one, and so makes a "finding" of anything.
#
# Grad-CAM cuts what speaks *against* a class. The method `hires-cam` keeps it. In blue: what the model counts as evidence that this is no dogsled.

# %%
against = sightline.explain(seen, target="dogsled", method="hires-cam")
below = (against.raw < 0).mean()
print(
    f"{below:.0%} of the cells speak against; for and against together sum to {against.raw.sum():.2f}, the logit is {against.score:.2f}"
)
sightline.side_by_side([against])

# %% [markdown]
# ### How strong is a map of nothing?
#
# The model is asked for all its 1,000 classes. Nearly all of them are not in the picture. This shows how high a map of nothing gets.

# %%
everything = np.stack(
    [sightline.attribute(seen.captures[0], model, method="hires-cam", target=k)[0].numpy() for k in range(len(logits))]
)
highest = everything.max(axis=(1, 2))

figure, place = plt.subplots(figsize=(9, 3), layout="constrained")
place.hist(highest, bins=60, color="lightgrey")
for number, one in enumerate([*two, behind, sled]):
    place.axvline(one.evidence, color=f"C{number}", label=f"{one.label}: {one.evidence:.3f}")
    print(f"{one.label:14} is above {(highest < one.evidence).mean():.0%} of all classes")
place.set_xlabel("highest cell of the map, in units of the score")
place.set_ylabel("classes")
place.legend()
plt.show()
print(
    f"half of all classes have a highest cell of more than {np.median(highest):.3f}; none at all: {(highest <= 0).sum()}"
)

# %% [markdown]
# So almost every class finds *something*, and a map that is not empty proves nothing. Compare a map's highest value with those of classes that you know are not there.
#
# ## Something that fools the model
#
# A model can be wrong about what it sees. Two candidates: a street sign, and the most probable class that a person does *not* see in this picture.

# %%
known = {index for several in there.values() for index in several}
ranked = logits.argsort(descending=True).tolist()
wrong = model.label(next(index for index in ranked if index not in known))
fooled = sightline.compare(seen, methods=["grad-cam"], targets=["street sign", wrong])
for one in fooled:
    above = (highest < one.evidence).mean()
    print(f"{one.label}: logit {one.score:.2f}, highest cell {one.evidence:.3f}, above {above:.0%} of all classes")
    alike = [(np.corrcoef(one.raw.flatten(), everything[k].flatten())[0, 1], model.label(k)) for k in ranked[:10]]
    correlation, most = max(pair for pair in alike if pair[1] != one.label)
    print(f"   of the ten most probable classes, {most} has the map most like it: they correlate by {correlation:.2f}")
    print(f"   {'The model is fooled to some degree.' if above > 0.9 else 'The model is not fooled by this.'}")
sightline.side_by_side([max(two, key=lambda one: one.evidence), *fooled])

# %% [markdown]
# Where the model is fooled, the map is *right*: it shows truly which part of the picture the model takes for the wrong thing. It says nothing on whether the thing is there.
# A heat map explains the model. It does not correct it.
#
# ## This class rather than that one
#
# "Why a tiger cat?" can mean "why not a dog?" or "why not another cat?" The answers differ. The **margin** is one logit minus the other; its map shows what separates the two.
# On the command line that is
#
# ```text
# sightline explain photo.jpg --target "tiger cat" --contrast "Egyptian cat"
# ```

# %%
relatives = next(iter(there.values()))
near = next(one.label for one in seen.predictions if one.index in relatives and one.label != upper)
targets = [upper, near, sightline.margin(upper, near)]
rather = sightline.compare(seen, methods=["hires-cam"], targets=targets)
for one in rather:
    print(f"{one.label}: score {one.score:.2f}, highest {one.raw.max():.3f}, lowest {one.raw.min():.3f}")
np.testing.assert_allclose(rather[2].raw, rather[0].raw - rather[1].raw, atol=1e-5)
print("the map of the margin is the first map minus the second")
alone = sightline.explain(seen, target=targets[2], method="hires-cam")
draw(
    [*(one.overlay() for one in rather), alone.overlay()],
    [upper, near, f"{upper}\nrather than {near}", "the same on its own scale"],
)

# %% [markdown]
# The first three are on one scale. In the map of the margin red speaks for the first class *rather than* the second, blue for the second. What both classes share, such as a face and fur, has cancelled out.
# Where two classes are alike, this is the question to ask.
#
# ## Logit, log-probability, probability
#
# You may also explain the probability itself. Then each class is compared with *all* others at once, each as much as the model believes in it:
#
# ```text
# map of log-probability(c) = map of logit(c) - sum over all classes k of  probability(k) * map of logit(k)
# ```

# %%
index = model.labels.index(upper)
log_p = sightline.explain(seen, target=sightline.log_probability(upper), method="hires-cam")
p = sightline.explain(seen, target=sightline.probability(upper), method="hires-cam")
mean_of_all = np.tensordot(probabilities.numpy(), everything, axes=1)
np.testing.assert_allclose(log_p.raw, everything[index] - mean_of_all, atol=1e-4)
np.testing.assert_allclose(p.raw, probabilities[index].item() * log_p.raw, atol=1e-5)
print("log-probability: the class's own map, minus the mean map of all classes, each as probable as the model says")
print(f"probability: the same times {probabilities[index].item():.3f}")

three = [sightline.explain(seen, target=upper, method="hires-cam"), log_p, p]
for one in three:
    print(f"{one.label}: highest {one.raw.max():.3f}, {(one.raw < 0).mean():.0%} of the cells below 0")
sightline.side_by_side(three, same_scale=False)

# %% [markdown]
# | you ask for | the map shows | use it when |
# |---|---|---|
# | the logit (what you get) | what speaks for this class | several things may be in the picture |
# | a margin | what speaks for this class rather than that one | two classes are alike |
# | the log-probability | what speaks for this class rather than all others | you want to know why this class won |
# | the probability | the same, but fading where the model is very sure | hardly ever |
#
# Here each map has a scale of its own, because the three scores have different units.
#
# ## Questions
#
# **1.** The model says "espresso 15 %". Is it unsure that there is an espresso?
#
# <details><summary>Answer</summary>
#
# You can't tell from the probability alone. Perhaps the evidence is weak; perhaps it is strong, and something else in the picture takes its share. Look at the logit, and at the map's highest value
# beside those of other classes.
#
# </details>
#
# **2.** A colleague shows a bright map for a class that is not in the picture, and says the model "sees" it. What do you ask for?
#
# <details><summary>Answer</summary>
#
# For the scale: is the map stretched to its own maximum? For the same class beside the predicted class on one scale. And for the model's score: is the class among the first?
# Only then is it worth asking what the model confuses.
#
# </details>
#
# **3.** The maps of "tabby" and "tiger cat" look the same. Is the method broken?
#
# <details><summary>Answer</summary>
#
# Not by that: both classes are mostly made of the same evidence, a cat's. Ask for the margin between them. If the map of *every* class looked the same, also of a dogsled, then the method
# would not depend on the class; the trust card checks that (*class sensitivity*).
#
# </details>
#
# ## Read on
#
# - [When it guesses](when-it-guesses.ipynb): low confidence, no evidence, disagreement.
# - [What can be asked](../tasks.md): boxes, pixels, several labels, likeness.
# - [How far to believe a picture](../trust.md).
# - [Methods](../methods.md).
