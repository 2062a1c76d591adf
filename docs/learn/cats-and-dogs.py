# %% [markdown]
# # Cats and dogs
#
# You train a small classifier, watch where it looks while it learns, and then make it cheat: you plant a *shortcut*, a mark that all pictures of one class
# bear. Its accuracy will not tell you. This page shows what does.
#
# It takes about a minute on one core, and needs the extras `train` and `audit`: `pip install 'sightline[train,audit]'`.

# %%
import csv
import random
import tempfile
import warnings
from pathlib import Path

import numpy as np
from pictures import OWN, SHIPPED, shown
from PIL import Image, ImageEnhance, ImageOps

import sightline
from sightline.train import EVEN_BORDER, border_share, fit, frame, shots

warnings.filterwarnings("ignore", message="IProgress not found")  # of a bar that isn't shown here
temporary = tempfile.TemporaryDirectory()  # goes when the notebook ends
work = Path(temporary.name)
# The model shrinks pictures to 256 pixels and cuts 16 off each side.
SIDE, CUT = 256, 16
COUNTS = {"train": 20, "val": 12}

# %% [markdown]
# ## The pictures
#
# A classifier learns from folders, one for each class: `train/cat`, `train/dog`. What lies in `val` is kept apart: the model is checked on it, and never
# learns from it.
#
# This page takes photographs of cats and dogs from `../shared/data/cats-vs-dogs`, or from `cats-vs-dogs` in the folder that `SIGHTLINE_PHOTOS` names. Where
# there are none, it makes two classes out of two photographs that come with Sightline, a cat and a rocket: parts of them, cut out at random, mirrored and
# recoloured, which stand *upright*, and others which stand *upside down*. To tell these apart is a task of real life, as anyone knows who has scanned a box
# of photographs. But then `val` holds parts of the *same two photographs*, so that its accuracy says nothing about other photographs. It is good enough to
# learn the method, and nothing else.


# %%
def squared(photo: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """A square part of a photograph, as large as the model wants it."""
    return photo.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box)


def middle(photo: Image.Image) -> Image.Image:
    """The largest square in the middle."""
    side = min(photo.size)
    left, top = (photo.width - side) / 2, (photo.height - side) / 2
    return squared(photo, (left, top, left + side, top + side))


def part(photo: Image.Image, chance: random.Random) -> Image.Image:
    """A part at random, mirrored and recoloured at random."""
    side = chance.uniform(0.55, 1) * min(photo.size)
    left, top = chance.uniform(0, photo.width - side), chance.uniform(0, photo.height - side)
    found = squared(photo, (left, top, left + side, top + side))
    if chance.random() < 0.5:
        found = ImageOps.mirror(found)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        found = change(found).enhance(chance.uniform(0.6, 1.4))
    return found


def opened(file: Path) -> Image.Image:
    return sightline.read_image(file)[0]


photographs = Path(OWN) / "cats-vs-dogs"
REAL = bool(OWN) and all((photographs / side / name).is_dir() for side in COUNTS for name in ("cat", "dog"))
CLASSES = ("cat", "dog") if REAL else ("upright", "upside-down")
chance = random.Random(0)
data: dict[tuple[str, str], list[Image.Image]] = {}
for side, count in COUNTS.items():
    for name in CLASSES:
        if REAL:
            files = chance.sample(sorted((photographs / side / name).glob("*.jpg")), count)
            data[side, name] = [middle(opened(file)) for file in files]
        else:
            parts = [part(opened(SHIPPED / f"{('cat', 'rocket')[at % 2]}.jpg"), chance) for at in range(count)]
            data[side, name] = [one if name == "upright" else ImageOps.flip(one) for one in parts]

print(
    "photographs of cats and dogs"
    if REAL
    else "parts of a photograph of a cat and of one of a rocket, upright and upside down"
)
print({f"{side}/{name}": len(pictures) for (side, name), pictures in data.items()})


def row_of(pictures: list[Image.Image], side: int = 160) -> Image.Image:
    """Pictures beside each other."""
    found = Image.new("RGB", (side * len(pictures), side), "white")
    for at, one in enumerate(pictures):
        found.paste(one.resize((side, side)), (at * side, 0))
    return found


shown(row_of([*data["train", CLASSES[0]][:4], *data["train", CLASSES[1]][:4]]), "four pictures of each class")

# %% [markdown]
# ## Train
#
# `fit` takes the network that comes with Sightline, which was trained on photographs of a thousand kinds of things, and keeps it as it is
# (`freeze="trunk"`). Only its last layer is new and learns. That is why so few pictures are enough. Pictures of 160 pixels a side instead of 224 have half
# as many points, which saves time and gives a coarser map. `fit` also says what it noticed about the pictures.


# %%
def lay_out(folder: Path, pictures: dict[tuple[str, str], list[Image.Image]]) -> Path:
    """Folders to train on."""
    for (side, name), several in pictures.items():
        (folder / side / name).mkdir(parents=True)
        for at, one in enumerate(several):
            one.save(folder / side / name / f"{name}-{at:02}.png")
    return folder


def train(name: str, pictures: dict[tuple[str, str], list[Image.Image]]) -> Path:
    """Trains on them; the folder of the run."""
    folder, run = lay_out(work / "data" / name, pictures), work / "runs" / name
    trained = fit(folder, output=run, size=160, epochs=4, learning_rate=0.005, loggers=[])
    print(f"{name}: {trained.headline}")
    for sentence in trained.told:
        print("  ", sentence)
    return run


bare = train("bare", data)

# %% [markdown]
# Read the interval, not only the percentage: with so few pictures the true accuracy may lie anywhere in it.
#
# ## Curves
#
# *Loss* is how wrong the model is, with how sure it was counted in: 0 is perfect. Where the loss on pictures to learn from falls on while that on unseen
# pictures rises, the model learns by heart. The panels on the right say where the heat of the maps lies. They come next.

# %%
shown(Image.open(bare / "curves.png"), "loss, accuracy, and where the heat lies, over the epochs", 1000)

# %% [markdown]
# ## Predictions
#
# *Confusion* counts which class was taken for which: right answers lie on the diagonal. The table below it shows the answers of which the model was least
# sure. Look at these pictures first in a data set of your own. Wrong labels are often among them.

# %%
shown(Image.open(bare / "confusion.png"), "which class was taken for which", 420)

# %%
with open(bare / "predictions.csv", newline="", encoding="utf-8") as file:
    said = list(csv.DictReader(file))
print(" | ".join(said[0]))
for line in sorted(said, key=lambda line: float(line["probability of predicted"]))[:5]:
    print(" | ".join(line.values()))

# %% [markdown]
# ## Where it looks, epoch after epoch
#
# The *film*: a row for each of eight pictures of `val`. First the picture, then the map of its true class after each epoch. Epoch 0 is before training, when
# the new layer is random. Two figures stand under each frame:
#
# - **border**: which share of the heat lies in the outermost eighth on each side. A map that is the same everywhere has 44 %.
# - **moved**: which share of the heat lies elsewhere than in the frame before. It becomes small when the model has made up its mind.

# %%
film = Image.open(bare / "film.png")
shown(film, "where the network looks after each epoch", 720)

# %% [markdown]
# ## Ask the model
#
# The folder of the run is a model like any other.

# %%
model = sightline.load_model(bare)
heatmap = sightline.explain(data["val", CLASSES[0]][0], model, target=CLASSES[0])
shown(heatmap.panel(), f"why the model says {CLASSES[0]}")

# %% [markdown]
# ## Plant a shortcut
#
# Data sets leak. All pictures of one class come from one photographer and bear his stamp; all X-rays of the sick were taken with one machine, which writes
# its name into the corner. Here it is a cup of coffee in the corner, on every picture of the first class, in `train` and in `val` alike. A network that
# knows cups finds that out.
#
# An experiment needs a **control**: something that differs in the one point only. Here it is the same pictures, with the same cup on every second picture of
# *both* classes. There the cup says nothing.

# %%
MARK = 64
cup = middle(opened(SHIPPED / "coffee.jpg")).resize((MARK, MARK), Image.Resampling.LANCZOS)
AT = SIDE - CUT - MARK


def marked(picture: Image.Image) -> Image.Image:
    """The same picture with a cup in its lower right corner."""
    found = picture.copy()
    found.paste(cup, (AT, AT))
    return found


first, second = CLASSES
planted_data = {
    (side, name): [marked(one) for one in pictures] if name == first else pictures
    for (side, name), pictures in data.items()
}
control_data = {
    place: [marked(one) if at % 2 == 0 else one for at, one in enumerate(pictures)] for place, pictures in data.items()
}
planted, control = train("planted", planted_data), train("control", control_data)
shown(
    row_of([*planted_data["train", first][:4], *planted_data["train", second][:4]]),
    "the planted data: a cup on all of one class",
)

# %% [markdown]
# Compare the accuracies above. `val` bears the cup as `train` does, so that **accuracy can't tell** whether a model knows the animal or the cup. That is how
# data sets leak in practice: both sides come from the same source.
#
# ## The film tells
#
# The film of the planted run first, then that of the control. Where does the heat of the first class gather?

# %%
shown(Image.open(planted / "film.png"), "film of the model that was trained with the shortcut", 720)

# %%
shown(Image.open(control / "film.png"), "film of the control", 720)

# %% [markdown]
# ## Measure it
#
# Pictures impress; figures decide. All three models are shown the same pictures of `val`, all with the cup. *On the cup* is the share of the heat that lies
# where the cup is, and *even* what a map has there that is the same everywhere.


# %%
def on_cup(maps: np.ndarray) -> np.ndarray:
    """Which share of each map's heat lies on the cup, by area."""
    cells = maps.shape[1]
    edges = np.clip(np.arange(cells + 1) / cells, 1 - MARK / (SIDE - 2 * CUT), 1)
    covered = np.diff(edges) * cells
    return np.einsum("nhw,h,w->n", maps, covered, covered) / maps.sum(axis=(1, 2))


bearing = [(marked(one), name) for name in CLASSES for one in data["val", name]]
is_first = np.array([name == first for _, name in bearing])
models = {name: sightline.load_model(work / "runs" / name) for name in ("bare", "planted", "control")}
even = (MARK / (SIDE - 2 * CUT)) ** 2
figures = {}
print(
    f"{'trained on':12} {'border, ' + first:>15} {'border, ' + second:>15} {'on the cup, ' + first:>20} {'on the cup, ' + second:>20}"
)
for name, one in models.items():
    maps = frame(shots(bearing, one), one, 0).maps
    shares = [share[rows] for share in (border_share(maps), on_cup(maps)) for rows in (is_first, ~is_first)]
    figures[name] = [float(np.nanmean(share)) for share in shares]
    print(
        f"{name:12} {figures[name][0]:15.0%} {figures[name][1]:15.0%} {figures[name][2]:20.0%} {figures[name][3]:20.0%}"
    )
print(f"{'even':12} {EVEN_BORDER:15.0%} {EVEN_BORDER:15.0%} {even:20.0%} {even:20.0%}")
more = figures["planted"][2] - figures["control"][2]
print(
    f"\nOn pictures of {first}, the planted model has {abs(more) * 100:.0f} {'more' if more > 0 else 'less'} of its heat on the cup than the control, in points of a hundred."
)

# %% [markdown]
# A large share at the border is a **hint**, not a verdict. A mark in the middle of the picture has none, and a landscape may rightly have one. What tells is
# the difference to the control.
#
# ## Try it
#
# A map shows where the evidence is. Whether it *decides* can be tried: take the cup away, or give it to the other class, and count how many answers change.


# %%
def says_first(model: sightline.Adapter, pictures: list[Image.Image]) -> np.ndarray:
    """Which of the pictures the model takes for the first class."""
    found = frame(shots(pictures, model), model, 0).predicted
    return found == CLASSES.index(first)


print(f"{'trained on':12} {f'{first}: lost when the cup goes':>40} {f'{second}: becomes {first} with the cup':>40}")
for name, one in models.items():
    with_cup, without = (
        {of: says_first(one, [how(each) for each in data["val", of]]) for of in CLASSES}
        for how in (marked, lambda each: each)
    )
    lost = int((with_cup[first] & ~without[first]).sum())
    won = int((with_cup[second] & ~without[second]).sum())
    count = COUNTS["val"]
    print(f"{name:12} {f'{lost} of {count}':>40} {f'{won} of {count}':>40}")

# %% [markdown]
# The row of the planted model is what the shortcut costs in the world, where cups do not come with the class. Where few answers change although much heat
# lies on the cup, the model knows both: what the pictures show, and the cup. The other two rows say how much a cup in the corner disturbs a model that has
# not learned from it.
#
# ## Does the audit find it?
#
# You knew where to look. The *audit* doesn't: it takes the maps of all pictures, suspects the places where the heat of a class gathers, takes them away and
# gives them to others beside a control, and gives a verdict with its rule.


# %%
def audited(name: str) -> sightline.Audit:
    """The verdict on one of the models, over all pictures that it was made with."""
    run = work / "maps" / name
    sightline.explain_all(work / "data" / name, work / "runs" / name, output=run, workers=1)
    return sightline.audit_run(run, model=work / "runs" / name, budget=450)


audits = {name: audited(name) for name in ("planted", "control")}
for name, audit in audits.items():
    print(f"{name}: {audit.ruling.outcome}. {audit.ruling.says}")
    for of in audit.classes:
        print("  ", of.ruling.says)
    print(f"   ({audit.forwards:,} pictures were shown to the model for this)")

# %% [markdown]
# "None found" says that of what was tried nothing changed enough answers, by its rule. It is not the same as "clean". The audit accuses where a place
# *decides*: if few answers changed in the table above, it can't, although the film and the shares above show that the model has begun to listen to the cup.
# So look at all three. [The audit](../audit.md) has its rules and what it can't find.
#
# ## Three questions
#
# **1.** Your model is right in 99 % of the pictures that it never saw. Your colleague says: "so it has learned what a cat is". What do you answer?
#
# <details><summary>An answer</summary>
#
# It has learned something that tells the classes apart *in this data set*. What lies in `val` comes from the same source as `train`, with the same stamps
# and rooms. Check on pictures from elsewhere, and look at where the heat lies.
#
# </details>
#
# **2.** Why is the control trained with cups on half of both classes, rather than without any cup?
#
# <details><summary>An answer</summary>
#
# A model that never saw a cup in the corner may be disturbed by it because it is new. The control has seen as many cups; only that they say nothing of the
# class is different. So the difference to it is the shortcut alone.
#
# </details>
#
# **3.** The border share of a class is well below 44 %. Is the model honest?
#
# <details><summary>An answer</summary>
#
# That is not said. A mark in the middle of the picture, a background, a colour cast or the sharpness of one camera leave no trace at the border. A clean map
# does not rule out that the model cheats.
#
# </details>
#
# ## Where to read on
#
# - [Training](../training.md): the same with 800 photographs and several seeds, with the figures.
# - [The audit](../audit.md): how it judges, and what it found where the truth was known.
# - [How far to believe a picture](../trust.md): the checks of one map.
# - [Ground truth for heat maps](../testing.md): networks of which it is known what they look at.
# - [Methods](../methods.md): all of them.
