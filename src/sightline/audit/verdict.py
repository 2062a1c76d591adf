"""From figures to words: what a candidate, a class and the model are found to be, by which rule, and what to do next."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from sightline.audit.heat import Where
from sightline.audit.regions import BACKGROUND, REGION, SIZES, Candidate
from sightline.audit.trials import GIVEN, TAKEN, Trial
from sightline.metrics.statistics import holm

SHORTCUT, SUSPECTED, PLACE, CLEARED, UNTRIED = "shortcut", "suspected", "place", "cleared", "untried"
NONE, TOO_FEW = "none found", "too few"
ORDER = (SHORTCUT, SUSPECTED, NONE, UNTRIED, TOO_FEW)  # the worst first
ALPHA = 0.05  # for everything that was tried, together (Holm)
EFFECT = 0.25  # more flips than under the control, by the lower end of the interval
STRONG = 0.5  # the same, for what is of the whole picture and may belong to the class
LEAST = 20  # pictures of a class, below which nothing is claimed


@dataclass(frozen=True)
class Ruling:
    """What something was found to be: `outcome`, `says` in a sentence, `because` of which figures by which rule, `next` to be done."""

    outcome: str
    says: str
    because: tuple[str, ...] = ()
    next: tuple[str, ...] = ()


def corrected(trials: Sequence[Sequence[Trial]]) -> list[list[Trial]]:
    """The trials with their p values corrected for all that were made."""
    found = iter(holm([one.p for each in trials for one in each]))
    return [[replace(one, p=next(found)) for one in each] for each in trials]  # type: ignore[arg-type]


def shows(trial: Trial, effect: float = EFFECT) -> bool:
    """Whether a trial differs from its control by more than chance, and by enough."""
    low = trial.difference.low
    return trial.p <= ALPHA and low is not None and low >= effect


def ruling_on(one: Candidate, trials: Sequence[Trial]) -> Ruling:
    """What a candidate is, by its trials (corrected)."""
    place = one.place()[:1].upper() + one.place()[1:]
    told = tuple(_told(one.of, each) for each in trials)
    if not trials:
        return Ruling(UNTRIED, f"{place}: nothing was tried.")
    given, taken = (any(shows(each) for each in trials if each.way == way) for way in (GIVEN, TAKEN))
    if one.what == REGION:
        if given and taken and one.aside:
            return Ruling(SHORTCUT, f"{place} decides that it is {one.of!r}, and lies where no object is.", told)
        if given and taken and one.marginal:
            return Ruling(
                SUSPECTED,
                f"{place} decides that it is {one.of!r}, at the border. Should it be the object, masks (--masks) or a look tell.",
                told,
            )
        if given and taken:
            return Ruling(
                PLACE,
                f"{place} decides that it is {one.of!r}. It may be the object itself: masks (--masks) or a look tell.",
                told,
            )
        if (given or taken) and one.aside:
            return Ruling(SUSPECTED, f"{place} matters for {one.of!r}, in one of the two directions tried.", told)
        return Ruling(CLEARED, f"{place}: changing it matters no more than changing another place.", told)
    strong = any(shows(each, STRONG) for each in trials)
    if strong and given and taken:
        return Ruling(SHORTCUT, f"{place} decides that it is {one.of!r}, whatever the picture shows.", told)
    # Enlarging cuts the border off, and with it whatever lies there; alone it says nothing of the size.
    if (strong and one.what not in SIZES) or (given and taken):
        return Ruling(
            SUSPECTED, f"{place} matters much for {one.of!r}; whether it belongs to the class is for you to say.", told
        )
    return Ruling(CLEARED, f"{place}: exchanged between classes it doesn't decide.", told)


def ruling_on_class(
    name: str,
    pictures: int,
    heat: Sequence[Where],
    candidates: Sequence[tuple[Candidate, Ruling]],
    unusual: Sequence[float],
    tried: bool,
) -> Ruling:
    """What a class is found to be.

    Args:
        name: the class.
        pictures: that the model says are of it.
        heat: where its heat lies.
        candidates: with what they were found to be.
        unusual: the p values of its groups of maps.
        tried: whether interventions were made for it.
    """
    if pictures < LEAST:
        return Ruling(
            TOO_FEW,
            f"{name!r}: too few pictures to claim anything ({pictures}, and {LEAST} are needed).",
            next=(f"Explain more pictures that the model calls {name!r}.",),
        )
    for outcome in (SHORTCUT, SUSPECTED):
        accused = [(one, ruling) for one, ruling in candidates if ruling.outcome == outcome]
        if accused:
            (one, ruling), *more = accused
            others = f" Also: {'; '.join(each.place() for each, _ in more)}." if more else ""
            word = "goes by a shortcut" if outcome == SHORTCUT else "may go by a shortcut"
            return Ruling(outcome, f"{name!r} {word}: {ruling.says}{others}", ruling.because, advice(one))
    hints = _hints(heat, candidates, unusual)
    if not tried:
        if hints:
            return Ruling(
                SUSPECTED,
                f"{name!r}: the maps look odd, and nothing was tried to find out whether that decides.",
                hints,
                (
                    "Have it tried: with the model (--model), its pictures (--data) and a larger --budget, whichever is missing.",
                ),
            )
        return Ruling(UNTRIED, f"{name!r}: nothing odd in the maps; nothing was tried.")
    held = [one for one, ruling in candidates if ruling.outcome == PLACE]
    said = f" What it does go by is {held[0].place()}, which may be the object itself." if held else ""
    count = sum(ruling.outcome != UNTRIED for _, ruling in candidates)
    none = f"none but {' and '.join(one.place() for one in held)}" if held else "none"
    because = (
        f"{count} of {len(candidates)} regions and traits were taken from its pictures and given to others; {none} changed the answer by more than its control "
        f"in both directions (rule: {ALPHA:.0%} for all trials together, and at least {EFFECT:.0%} more flips).",
        *hints,
    )  # fmt: skip
    after = ("Look at what lies there, or say where the objects are (--masks, --boxes).",) if held else ()
    return Ruling(NONE, f"{name!r}: no shortcut was found.{said}", because, after)


def ruling_on_model(classes: Sequence[tuple[str, Ruling]], tried: Collection[str]) -> Ruling:
    """The verdict on the model: that of its worst class.

    Args:
        classes: by name.
        tried: the names of those for which interventions were made.
    """
    if not classes:
        return Ruling(TOO_FEW, "There is no class to speak of.")
    worst = min((ruling.outcome for _, ruling in classes), key=ORDER.index)
    named = [name for name, ruling in classes if ruling.outcome == worst]
    rulings = [ruling for _, ruling in classes if ruling.outcome == worst]
    listed = ", ".join(map(repr, named[:5])) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
    looked_at = sum(ruling.outcome != TOO_FEW and name not in tried for name, ruling in classes)
    only = f"; of {looked_at} more only the maps were looked at, and nothing was tried" if looked_at else ""
    says = {
        SHORTCUT: f"The model goes by a shortcut for {listed}.",
        SUSPECTED: f"The model may go by a shortcut for {listed}.",
        NONE: f"No shortcut was found in {len(tried)} of {len(classes)} classes{only}." if tried else "",
        UNTRIED: f"Nothing odd in the maps of {looked_at} of {len(classes)} classes; nothing was tried.",
        TOO_FEW: f"Too few pictures to claim anything: no class has {LEAST}.",
    }[worst]
    if worst == NONE:  # what does decide, and may be the object, comes first
        rulings = sorted(
            (one for name, one in classes if name in tried and one.outcome == NONE), key=lambda one: not one.next
        )
    told = tuple(ruling.says for ruling in rulings[:5] if worst in (SHORTCUT, SUSPECTED) or ruling.next)
    after = tuple(dict.fromkeys(step for ruling in rulings[:5] for step in ruling.next))
    return Ruling(worst, says, told, after)


def advice(one: Candidate) -> tuple[str, ...]:
    """What to do about a shortcut."""
    name = repr(one.of)
    last = "Then train again, run sightline batch again, and compare: sightline audit RUN_BEFORE RUN_AFTER."
    if one.what == REGION:
        return (
            f"Look at the pictures (report, and the folder pictures): what lies in {one.place()}?",
            f"Collect: pictures of {name} without it, and of other classes with it.",
            "Or mask: train with that region covered or cut off in all pictures; pictures/ has them changed so.",
            last,
        )
    if one.what == BACKGROUND:
        return (
            f"Collect: {name} before other backgrounds, and other classes before these.",
            "Or mask: train with exchanged backgrounds; pictures/ has some.",
            last,
        )
    return (
        f"Look at where the pictures of {name} come from: another camera, scanner, size or compression than the others?",
        f"Collect: {name} and the other classes from the same sources.",
        f"Or train with the {one.what} changed at random (augmentation), so that it says nothing; pictures/ has some.",
        last,
    )


def _told(name: str, trial: Trial) -> str:
    what = {
        "covered": "covered with the mean colour", "inpainted": "filled from around it", "exchanged": "replaced by that of other classes",
        "pasted": "pasted onto pictures of other classes", TAKEN: "replaced by that of other classes", GIVEN: "given to pictures of other classes",
    }[trial.change]  # fmt: skip
    word = "are no longer" if trial.way == TAKEN else "become"
    low, high = trial.difference.low, trial.difference.high
    between = "" if low is None or high is None else f", {low:+.0%} to {high:+.0%}"
    return (
        f"{what}: {trial.flips:.0%} of {trial.pictures} pictures {word} {name!r}, {trial.control:.0%} under the control "
        f"(difference{between}, p {trial.p:.2g} corrected)"
    )  # fmt: skip


def _hints(
    heat: Sequence[Where], candidates: Sequence[tuple[Candidate, Ruling]], unusual: Sequence[float]
) -> tuple[str, ...]:
    """What is odd in the maps alone."""
    found = []
    by = {one.part: one for one in heat}
    inside = by.get("object")
    if inside is not None and inside.share.high is not None and inside.share.high < 0.5:
        found.append(f"Only {inside.share.mean:.0%} of the heat lies on the objects, which cover {inside.even:.0%}.")
    border = by.get("border")
    if border is not None and border.share.low is not None and border.share.low > 1.5 * border.even:
        found.append(f"{border.share.mean:.0%} of the heat lies in the border, {border.even:.0%} in an even map.")
    if any(p <= ALPHA for p in unusual):
        aside = [one for one, _ in candidates if one.box is not None and one.aside]
        found += [f"A group of maps gathers in {one.place()}." for one in aside[:3]]
    return tuple(found)
