"""The trust card: a few checks of ONE map, each with its figure and its rule, and a verdict in plain words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from sightline.attribution import Origin
from sightline.engine.attention import WANTED
from sightline.engine.probe import Progress
from sightline.errors import (
    LayerError,
    MethodError,
    MetricError,
    ModelError,
    NonFiniteError,
    TargetError,
    UndefinedError,
)
from sightline.methods.notices import floor, same_map
from sightline.methods.registry import ONE_PASS, PIXELS, find
from sightline.metrics.case import Asking, Case, case, explainer
from sightline.metrics.faithfulness import BATCH, Explain, deletion, insertion
from sightline.metrics.maps import centred_map, enlarged, likeness, random_map
from sightline.metrics.measure import asked_again
from sightline.metrics.randomisation import other_classes, parameter_randomisation
from sightline.metrics.registry import Array, Curve, Measured, find_metric, run_metric
from sightline.models.adapter import INPUT
from sightline.render.panel import Tile, percent, sheet
from sightline.render.plots import Line, curves

Outcome = Literal["passed", "doubtful", "failed", "no answer", "not run"]
Verdict = Literal["supported", "weak", "not supported"]
THIS, CENTRE = "this map", "centred blob"

# The rules, with their numbers; `_RULES` says them.
ALIKE, SAME, RANDOM_DOUBT, RANDOM_FAIL, LEAST_FALL, LEAST_LEAD = 0.5, 0.9, 0.5, 0.8, 0.02, 0.01
_RULES = {
    "faithfulness": "better than each random map and the centred blob in deletion and in insertion, by more than "
    f"{LEAST_LEAD:.0%} of the fall from the whole picture to an emptied one; failed when the random maps' mean is better in both by that",
    "class sensitivity": f"maps of other classes correlate with it by less than {SAME} on average",
    "randomisation": "while layers are made random from the output down, the map correlates with itself, either way, by less than "
    f"{RANDOM_DOUBT} at the median depth and with all of them random; failed from {RANDOM_FAIL}",
    "agreement": f"the median correlation with maps of other kinds of methods is at least {ALIKE}",
    "evidence": "the map has positive values, is not the same everywhere, and not nearly empty against the score",
}
_VERDICT_RULE = (
    "supported when all checks that ran passed; weak when one left a doubt; "
    "not supported when one failed, or when faithfulness has no answer"
)
# Witnesses of another kind: averaged gradients, gradients cell by cell, and (beside these) hiding parts of the picture.
_WITNESSES = ("grad-cam", "hires-cam")
_MORE_WITNESSES = ("layer-cam", "recipro-cam", "ablation-cam", "attention-grad")
OCCLUSION = "hiding parts"
_PLOT = 560  # pixels of a curve on the card
# Faithfulness, then what only --trust full asks.
_FULL = (
    "road-morf", "road-lerf", "average-drop", "increase-in-confidence", "average-gain", "adcc", "infidelity", "max-sensitivity",
    "random-logit", "sparseness", "entropy", "complexity",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How much is asked.

    Attributes:
        steps: of a deletion or insertion curve; 0 for the paper's 224 pixels a step.
        randoms: random maps to compare with.
        classes: other classes that are asked for.
        depths: of the randomisation cascade; 0 for every layer.
        draws: of random weights.
        parts: along each side of the picture, hidden one after the other.
        full: whether all metrics run.
    """

    steps: int
    randoms: int
    classes: int
    depths: int
    draws: int
    parts: int
    full: bool = False

    def pixels(self, size: int) -> int:
        """Pixels a step, for a picture of so many."""
        return 224 if self.steps == 0 else -(-size // self.steps)


CHEAP, FULL = Plan(6, 2, 5, 5, 2, 3), Plan(0, 5, 10, 0, 5, 7, full=True)


@dataclass(frozen=True)
class Check:
    """One question to a map: its name, how it came out, the figures in a sentence, and the rule that was applied."""

    name: str
    outcome: Outcome
    says: str
    rule: str


@dataclass(frozen=True, eq=False)
class TrustCard:
    """How far to believe one map.

    Attributes:
        verdict: "supported", "weak" or "not supported", by the checks that ran.
        because: which checks decided, and the rule.
        checks: each with its outcome, its figures and its rule.
        curves: "deletion" and "insertion" -> name of a map -> its curve, for this map, random ones and a centred one.
        agreement: other methods -> Spearman's correlation of their map with this one; None where it has none.
        classes: other classes -> Spearman's correlation of their map with this one.
        randomisation: the same with the map of the model whose layers are random, from the output down; None where not asked.
        measured: all metrics that ran, by name.
        warnings: what was said beside the map.
        forwards: how many pictures the model was shown for this.
        title: the target and its probability.
        caption: method, layer, grid and model.
        overlay: the map on the photograph, for the picture.
    """

    verdict: Verdict
    because: str
    checks: tuple[Check, ...]
    curves: Mapping[str, Mapping[str, Curve]]
    agreement: Mapping[str, float | None]
    classes: Mapping[str, float | None]
    randomisation: Curve | None
    measured: Mapping[str, Measured]
    warnings: tuple[str, ...]
    forwards: int
    title: str = ""
    caption: str = ""
    overlay: Image.Image | None = None

    def _steps(self) -> int:
        return len(self.curves["deletion"][THIS].at) - 1

    def verdict_in_words(self) -> str:
        """The verdict as the end of a sentence."""
        return VERDICTS[self.verdict]

    def record(self) -> dict[str, Any]:
        """What `--json` and trust.json say."""
        return {
            "verdict": self.verdict,
            "because": self.because,
            "checks": [dataclasses.asdict(one) for one in self.checks],
            "curves": {
                name: {
                    of: {"at": _plain(one.at), "scores": _plain(one.scores), "area": one.value}
                    for of, one in each.items()
                }
                for name, each in self.curves.items()
            },
            "agreement": dict(self.agreement),
            "classes": dict(self.classes),
            "randomisation": None
            if self.randomisation is None
            else {"at": _plain(self.randomisation.at), "correlations": _plain(self.randomisation.scores)},
            "measured": {name: one.record() for name, one in self.measured.items()},
            "warnings": list(self.warnings),
            "forwards": self.forwards,
        }

    def panel(self) -> Image.Image:
        """The card as one picture: the map, the curves beside those of maps that know nothing, and every check with its rule."""
        tiles = [] if self.overlay is None else [Tile(_widened(self.overlay), "the map")]
        for name, each in self.curves.items():
            lines = [Line(of, one.at, one.scores, baseline=of != THIS) for of, one in each.items()]
            low = "low is good" if name == "deletion" else "high is good"
            changed = "share of the picture taken away" if name == "deletion" else "share of the picture given back"
            plot = curves(f"{name}: {low}", changed, "score", lines, width=_PLOT)
            tiles.append(Tile(_half(plot), "", _areas(each)))
        if self.randomisation is not None:
            line = Line("correlation", self.randomisation.at, self.randomisation.scores)
            plot = curves(
                "randomisation: low is good", "share of the layers made random", "correlation", [line], width=_PLOT
            )
            tiles.append(Tile(_half(plot), "", "how like itself the map stays while the model forgets"))
        marks = {"passed": "\N{CHECK MARK}", "doubtful": "?", "failed": "\N{MULTIPLICATION SIGN}"}
        return sheet(
            [tiles[start : start + 2] for start in range(0, len(tiles), 2)],
            heading=f"{self.title}: {self.verdict_in_words()}",
            captions=[
                self.because,
                *(
                    f"{marks.get(one.outcome, '-')} {one.name} ({one.outcome}): {one.says}. Rule: {one.rule}"
                    for one in self.checks
                ),
                f"{self.caption}. {self.forwards:,} pictures were shown to the model for this; curves have {self._steps()} steps.",
                "Deletion and insertion judge by pictures that the model never saw, and blurred maps tend to win; "
                "that is why random and centred maps stand beside.",
            ],
            warnings=self.warnings,
            keys=[],
        )


VERDICTS = {
    "supported": "supported by the checks",
    "weak": "only weakly supported by the checks",
    "not supported": "not supported by the checks",
}


def _plain(values: Array) -> list[float | None]:
    return [float(one) if np.isfinite(one) else None for one in values]


def _half(picture: Image.Image) -> Image.Image:
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)


def _widened(picture: Image.Image) -> Image.Image:
    """On white, as wide as a curve, so that columns stay under each other."""
    wide = Image.new("RGB", (max(_PLOT, picture.width), picture.height), "white")
    wide.paste(picture)
    return wide


def _areas(each: Mapping[str, Curve]) -> str:
    return "area: " + ", ".join(f"{of} {one.value:.3f}" for of, one in each.items())


def _planned(origin: Origin, plan: Plan) -> int:
    size = origin.x.shape[2] * origin.x.shape[3]
    price, curve = _price(origin), 2 * (-(-size // plan.pixels(size)) - 1) * (plan.randoms + 2)
    always = 4 + curve + plan.parts**2
    if not plan.full:
        return always + (plan.depths + plan.draws + plan.classes * price if price <= 1 else 0)
    layers = sum(any(True for _ in one.parameters(recurse=False)) for one in origin.adapter.module.modules())
    metrics = 2 * 9 + 1 + 50 + 12 * max(price, 1)
    return always + metrics + (layers + plan.draws) * max(price, 1) + 2 * plan.classes * price


def planned_for(origin: Origin, full: bool) -> int:
    """About how many pictures a check will show to the model."""
    return _planned(origin, FULL if full else _within(origin, CHEAP))


def _price(origin: Origin) -> int:
    """Pictures the model must be shown for another map of the same picture: 0, 1, or many."""
    if origin.method.needs in ONE_PASS and len(origin.layers) == 1:
        return 0
    return 1 if origin.method.needs in (*ONE_PASS, *WANTED, *PIXELS) else max(2, origin.cost)


def check(
    origin: Origin,
    shown: Array,
    signed: Array,
    *,
    full: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrustCard:
    """Asks the model how far one map is to be believed.

    Args:
        origin: how the map came about.
        shown: (h, w), the map as its method gives it.
        signed: (h, w), the same before anything was cut off below 0.
        full: everything, at the papers' resolution, instead of about 60 forwards.
        seed: of all that is random.
        progress: told (pictures shown so far, about how many it will be).
    """
    plan = FULL if full else _within(origin, CHEAP)
    total, count = planned_for(origin, full), [0]

    def told(pictures: int) -> None:
        count[0] += pictures
        if progress is not None:
            progress(min(count[0], total - 1), total)

    about, explain = asked_again(origin, told)
    one = case(shown, about, raw=signed, explain=explain)
    cheap = full or _price(origin) <= 1
    found_curves = _faithfulness(about, shown, plan, seed)
    classes = _classes(one, about, explain, origin, signed, plan.classes, seed) if cheap else {}
    agreement = _agreement(about, origin, signed, plan)
    black_box = origin.adapter.black_box
    if cheap and not black_box:
        told(1)  # which layers run, and when
    cascade = _cascade(signed, about, explain, plan, seed) if cheap or black_box else None
    measured = {name: Measured(name, each[THIS].value, curve=each[THIS]) for name, each in found_curves.items()}
    if isinstance(cascade, Curve):
        measured["parameter-randomisation"] = Measured("parameter-randomisation", cascade.value, curve=cascade)
    if full:
        for name in _FULL:
            measured[name] = _measured(name, one)
    expensive = "" if cheap else f"{origin.method.name} asks the model many times for each map: --trust full runs this"
    checks = (
        _about_evidence(shown, about, origin),
        _about_faithfulness(found_curves, about),
        _about_classes(classes, origin, expensive),
        _about_randomisation(cascade, expensive),
        _about_agreement(agreement),
    )
    verdict, because = _verdict(checks)
    if progress is not None:
        progress(total, total)
    return TrustCard(
        verdict=verdict,
        because=because,
        checks=checks,
        curves=found_curves,
        agreement=agreement,
        classes=classes,
        randomisation=cascade if isinstance(cascade, Curve) else None,
        measured=measured,
        warnings=(),
        forwards=count[0],
    )


def _within(origin: Origin, plan: Plan) -> Plan:
    """The cheap plan, with fewer questions where each costs a forward, so that it stays below 60."""
    return dataclasses.replace(plan, steps=5, classes=3) if _price(origin) == 1 else plan


def _faithfulness(about: Asking, shown: Array, plan: Plan, seed: int) -> dict[str, dict[str, Curve]]:
    size = (about.x.shape[2], about.x.shape[3])
    references = {f"random map {number + 1}": random_map(shown.shape, seed + number) for number in range(plan.randoms)}
    heats = {
        THIS: enlarged(shown, size),
        CENTRE: centred_map(size),
        **{name: enlarged(each, size) for name, each in references.items()},
    }
    step = plan.pixels(size[0] * size[1])
    return {
        name: {of: metric(heat, about.x, about.score, step=step, seed=seed) for of, heat in heats.items()}
        for name, metric in (("deletion", deletion), ("insertion", insertion))
    }


def _classes(
    one: Case, about: Asking, explain: Explain, origin: Origin, signed: Array, count: int, seed: int
) -> dict[str, float | None]:
    """Correlations with the maps of other classes drawn at random, as in random-logit."""
    if one.others is None or not origin.method.class_specific:
        return {}
    drawn = other_classes(one.others, count, seed)
    names = [about.adapter.label(index) for index in drawn]
    keys = names if len(set(names)) == len(names) else [f"{name} ({at})" for name, at in zip(names, drawn, strict=True)]
    return {key: _correlation(signed, _asked(explain, target=at)) for key, at in zip(keys, drawn, strict=True)}


def _asked(explain: Explain, **changes: Any) -> Array | None:
    """Another map, or None where there is none to be had."""
    try:
        found: Array = explain(**changes)[0]
    except (NonFiniteError, LayerError, MethodError, ModelError, TargetError):
        return None
    return found


def _correlation(one: Array, other: Array | None) -> float | None:
    try:
        return None if other is None else likeness(one, other)
    except UndefinedError:
        return None


def _hidden(about: Asking, heat: Array, parts: int) -> tuple[Array, Array]:
    """By how much the score falls when a part of the picture is set to 0, and the heat there, both (parts, parts)."""
    edges = [np.linspace(0, n, parts + 1).round().astype(int) for n in heat.shape]
    pictures, inside = about.x.repeat(parts * parts, 1, 1, 1), []
    for number, picture in enumerate(pictures):
        row, column = divmod(number, parts)
        place = (slice(*edges[0][row : row + 2]), slice(*edges[1][column : column + 2]))
        picture[:, place[0], place[1]] = 0
        inside.append(heat[place].mean())
    scores = torch.cat([about.score(some) for some in torch.split(pictures, BATCH)]).numpy()
    return -scores.reshape(parts, parts), np.array(inside).reshape(parts, parts)


def _agreement(about: Asking, origin: Origin, signed: Array, plan: Plan) -> dict[str, float | None]:
    """Correlations with what other kinds of methods say; what is the same map is no witness and left out."""
    size = (about.x.shape[2], about.x.shape[3])
    found: dict[str, float | None] = {}
    if origin.method.name != "occlusion":  # which asks the same
        found[OCCLUSION] = _correlation(*_hidden(about, enlarged(signed, size), plan.parts))
    heard = [signed]
    named = (*_WITNESSES, *(_MORE_WITNESSES if plan.full else ()))
    for name in named if about.seen.layer != INPUT else ():  # they look at layers
        if name == origin.method.name:
            continue
        other = dataclasses.replace(origin, method=find(name), options={}, layers=origin.layers[-1:])
        witness = _asked(explainer(about, other))
        if witness is not None and not any(_same(witness, one) for one in heard):
            heard.append(witness)
            found[name] = _correlation(signed, witness)
    return found


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and same_map(torch.from_numpy(one), torch.from_numpy(other))


def _cascade(signed: Array, about: Asking, explain: Explain, plan: Plan, seed: int) -> Curve | str:
    if about.adapter.black_box:
        return f"{about.adapter.name} is a black box: its weights can't be made random"
    try:
        return parameter_randomisation(
            signed, about.x, explain, about.adapter.module, depths=plan.depths, draws=plan.draws, seed=seed
        )
    except (UndefinedError, ModelError, LayerError) as error:
        return str(error)


def _measured(name: str, one: Case) -> Measured:
    try:
        return run_metric(find_metric(name), one)
    except (ModelError, LayerError, MethodError, NonFiniteError, MetricError) as error:
        return Measured(name, None, str(error))


def _about_evidence(shown: Array, about: Asking, origin: Origin) -> Check:
    rule = _RULES["evidence"]
    if not shown.max() > 0:
        return Check("evidence", "failed", "the map is empty: it has no positive value", rule)
    if np.ptp(shown) < 1e-6 * shown.max():
        return Check("evidence", "failed", "the map is the same everywhere: it does not tell where", rule)
    score = float(about.seen.scores[0]) if about.seen.scores is not None else 0.0
    if shown.max() <= floor(origin.method, torch.from_numpy(shown), score):
        return Check(
            "evidence", "doubtful", f"the map is nearly empty against the score: at most {shown.max():.3g}", rule
        )
    return Check("evidence", "passed", f"the highest value is {shown.max():.3g}", rule)


def _about_faithfulness(found: Mapping[str, Mapping[str, Curve]], about: Asking) -> Check:
    rule = _RULES["faithfulness"]
    deleted, inserted = found["deletion"], found["insertion"]
    whole, emptied = deleted[THIS].scores[0], deleted[THIS].scores[-1]
    fall = whole - emptied
    if about.target.index is not None and abs(fall) < LEAST_FALL:
        says = f"the probability hardly differs between the whole picture ({percent(whole)}) and an emptied one ({percent(emptied)})"
        return Check("faithfulness", "no answer", says, rule)
    if abs(fall) <= 1e-6 * max(abs(whole), abs(emptied)):
        return Check("faithfulness", "no answer", f"the score is {whole:.3g} with and without the picture", rule)
    least = LEAST_LEAD * abs(fall)
    beaten = {
        of: (
            deleted[of].value - deleted[THIS].value > least,
            inserted[THIS].value - inserted[of].value > least,
        )
        for of in deleted
        if of != THIS
    }
    says = "; ".join(
        f"{name} {each[THIS].value:.3f} against "
        + ", ".join(f"{one.value:.3f} ({of})" for of, one in each.items() if of != THIS)
        for name, each in found.items()
    )
    if all(all(both) for both in beaten.values()):
        return Check("faithfulness", "passed", says, rule)
    random = [of for of in deleted if of not in (THIS, CENTRE)]
    by_chance = [float(np.mean([each[of].value for of in random])) for each in (deleted, inserted)]
    worse = deleted[THIS].value - by_chance[0] > least and by_chance[1] - inserted[THIS].value > least
    return Check("faithfulness", "failed" if worse else "doubtful", says, rule)


def _about_classes(classes: Mapping[str, float | None], origin: Origin, expensive: str) -> Check:
    rule = _RULES["class sensitivity"]
    if not origin.method.class_specific:
        return Check("class sensitivity", "doubtful", f"{origin.method.name} shows the same for every class", rule)
    if expensive:
        return Check("class sensitivity", "not run", expensive, rule)
    known = {name: value for name, value in classes.items() if value is not None}
    if not known:
        why = "no map of another class can be compared with it" if classes else "there is no other class"
        return Check("class sensitivity", "no answer", why, rule)
    mean = float(np.mean(list(known.values())))
    others = (
        f"the maps of {len(known)} other classes correlate"
        if len(known) > 1
        else "the map of the other class correlates"
    )
    says = f"{others} with it by {mean:.2f}{' on average' if len(known) > 1 else ''}"
    return Check("class sensitivity", "passed" if mean < SAME else "doubtful", says, rule)


def _about_randomisation(cascade: Curve | str | None, expensive: str) -> Check:
    rule = _RULES["randomisation"]
    if cascade is None:
        return Check("randomisation", "not run", expensive, rule)
    if isinstance(cascade, str):
        return Check("randomisation", "no answer", cascade, rule)
    # An edge detector forgets only when the lowest layers are random, too: the end alone does not tell.
    halfway = float(np.nanmedian(np.abs(cascade.scores[1:])))
    says = (
        f"while layers are made random from the output down the map correlates with itself by {halfway:.2f} at the median depth, and by "
        f"{cascade.value:.2f} with all of them random, either way"
    )
    value = max(halfway, cascade.value)
    outcome: Outcome = "failed" if value >= RANDOM_FAIL else "doubtful" if value >= RANDOM_DOUBT else "passed"
    return Check("randomisation", outcome, says, rule)


def _about_agreement(agreement: Mapping[str, float | None]) -> Check:
    rule = _RULES["agreement"]
    known = {name: value for name, value in agreement.items() if value is not None}
    if not known:
        return Check("agreement", "no answer", "no other kind of method gives another map here", rule)
    says = ", ".join(f"{name} {value:.2f}" for name, value in known.items())
    return Check("agreement", "passed" if np.median(list(known.values())) >= ALIKE else "doubtful", says, rule)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(", ".join(names).rsplit(", ", 1))


def _verdict(checks: Sequence[Check]) -> tuple[Verdict, str]:
    failed = [one.name for one in checks if one.outcome == "failed"]
    doubtful = [one.name for one in checks if one.outcome == "doubtful"]
    passed = [one.name for one in checks if one.outcome == "passed"]
    if failed:
        return "not supported", f"{_listed(failed)} failed. Rule: {_VERDICT_RULE}"
    if any(one.name == "faithfulness" and one.outcome == "no answer" for one in checks):
        return "not supported", f"whether the score follows the map can't be told here. Rule: {_VERDICT_RULE}"
    if doubtful:
        return "weak", f"{_listed(doubtful)} left a doubt. Rule: {_VERDICT_RULE}"
    return "supported", f"{_listed(passed)} passed. Rule: {_VERDICT_RULE}"
