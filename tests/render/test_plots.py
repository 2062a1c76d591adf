"""Plots: they show the numbers they were given, and no text runs into another or out of the page."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, pairwise
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex, to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.text import Text
from PIL import Image

from sightline.errors import OutputError
from sightline.render import plots
from sightline.render.matrix import confusion
from sightline.render.page import SCALE, WIDTH, Page
from sightline.render.plots import Line, Row, critical_differences, curves, intervals

NAN = float("nan")
COUNTS = [1, 2, 6, 9, 14, 30]
BLUE, VERMILION = "#0072b2", "#d55e00"

ODD = [
    r"$\alpha$-cam",
    "a_b_c^2",
    "x<y & <script>",
    "100 % $",
    "虎斑猫",
    "🐅 tiger",
    "\ud800 lone",
    "e" + "\u0301" * 60,
    "\u202egnp.exe",
    "a\nb\tc\x00d",
    "",
    "قط نمري",
    "M" * 2_000,
    "%s {0}",
]
LONG = [f"a-method-with-a-rather-long-name-of-forty{index:02d}"[-40:] for index in range(30)]


class Drawn:
    """What a page holds: texts and lines in pixels of the page."""

    def __init__(self, page: Any, height: float) -> None:
        self.height, self.width = height, page._width
        artists = page._figure.artists + page._figure.lines + page._figure.texts + page._figure.patches
        self.texts = [one for one in artists if isinstance(one, Text)]
        self.lines = [one for one in artists if isinstance(one, Line2D)]
        self.areas = [one for one in artists if isinstance(one, Polygon)]
        self.boxes = {text: text.get_window_extent(page._canvas.get_renderer()) for text in self.texts}

    def words(self) -> list[str]:
        return [text.get_text() for text in self.texts]

    def at(self, words: str) -> tuple[float, float]:
        """Where the only text with these words stands."""
        (found,) = [text for text in self.texts if text.get_text() == words]
        return found.get_position()

    def dots(self) -> list[Line2D]:
        return [line for line in self.lines if line.get_marker() == "o"]

    def long_lines(self) -> list[Line2D]:
        """Lines of more points than a frame, a grid or a sample has."""
        return [line for line in self.lines if len(line.get_xdata()) > 4]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Drawn]:
    """Every page that was drawn in this test."""
    pages: list[Drawn] = []
    original = Page.image

    def image(page: Any, height: float) -> Image.Image:
        picture = original(page, height)
        pages.append(Drawn(page, height))
        return picture

    monkeypatch.setattr(Page, "image", image)
    return pages


def line(name: str = "grad-cam", values: Any = None, **changes: Any) -> Line:
    mean = np.linspace(0.9, 0.1, 11) if values is None else np.asarray(values, float)
    parts = {"x": np.linspace(0, 1, len(mean)), "mean": mean, "low": mean - 0.02, "high": mean + 0.02}
    return Line(**({"name": name} | parts | changes))


def falling(names: Sequence[str], seed: int = 0) -> list[Line]:
    """Curves that all end close together; the last of several is a baseline."""
    random = np.random.default_rng(seed)
    x = np.linspace(0, 1, 26)
    speeds = random.uniform(1, 8, len(names))
    return [
        line(name, 0.1 + 0.7 * np.exp(-speed * x), baseline=len(names) > 2 and index == len(names) - 1)
        for index, (name, speed) in enumerate(zip(names, speeds, strict=True))
    ]


def ranked(names: Sequence[str]) -> tuple[list[float], float, list[tuple[int, ...]]]:
    """Close mean ranks with a critical difference and groups."""
    count = len(names)
    found = (1 + (count - 1) * (0.2 + 0.6 * np.random.default_rng(1).uniform(0, 1, count))).tolist()
    order = np.argsort(found).tolist()
    size = max(2, count // 4)
    return found, 1.5, [tuple(order[start : start + size]) for start in range(max(0, count - size))]


def rows(names: Sequence[str]) -> list[Row]:
    random = np.random.default_rng(2)
    means = random.uniform(0.3, 0.8, len(names)).tolist()
    methods = [Row(name, mean, mean - 0.03, mean + 0.04) for name, mean in zip(names, means, strict=True)]
    return [*methods, Row("random", 0.21, 0.2, 0.22, True), Row("centre", 0.43, None, None, True)]


def taken(count: int) -> np.ndarray:
    """Counts of what was taken for what, mostly right."""
    random = np.random.default_rng(3)
    return random.integers(0, 4, (count, count)) + np.diag(random.integers(20, 90, count))


KINDS: dict[str, Callable[[Sequence[str]], Image.Image]] = {
    "curves": lambda names: curves("Deletion", "Share removed", "Probability", falling(names)),
    "ranks": lambda names: critical_differences("Deletion", names, *ranked(names)),
    "intervals": lambda names: intervals("Insertion", "Area under the curve", rows(names)),
    "confusion": lambda names: confusion("Taken for", names, taken(len(names))),
}
EACH = pytest.mark.parametrize("kind", KINDS)


def assert_tidy(picture: Image.Image, page: Drawn) -> None:
    """The picture has the promised size, every text is whole, on the page, and apart from every other."""
    assert picture.mode == "RGB"
    assert picture.size == (page.width * SCALE, np.ceil(page.height) * SCALE)
    assert page.width <= WIDTH
    pixels = np.asarray(picture)
    for border in (pixels[:8], pixels[-6:], pixels[:, :16], pixels[:, -16:]):
        assert (border == 255).all(), "something runs out of the page"
    boxes = [(text.get_text(), box) for text, box in page.boxes.items() if text.get_text()]
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.x1 <= picture.width, text
        assert box.y0 >= 0, text
        assert box.y1 <= picture.height, text
    for (one, first), (other, second) in combinations(boxes, 2):
        wide = min(first.x1, second.x1) - max(first.x0, second.x0)
        high = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert wide <= 1 or high <= 2, f"{one!r} runs into {other!r}"


# -------------------------------------------------------------------------------------------------------------- layout


@EACH
@pytest.mark.parametrize("count", COUNTS)
def test_no_text_runs_into_another_or_out_of_the_page(kind: str, count: int, drawn: list[Drawn]) -> None:
    names = [f"method-{index}" for index in range(count)]
    assert_tidy(KINDS[kind](names), drawn[0])


@EACH
@pytest.mark.parametrize("count", COUNTS)
def test_names_of_forty_letters_stand_whole(kind: str, count: int, drawn: list[Drawn]) -> None:
    assert_tidy(KINDS[kind](LONG[:count]), drawn[0])
    for name in LONG[:count]:
        assert any(words.startswith(name) for words in drawn[0].words())


def test_names_of_curves_that_end_low_do_not_run_into_a_long_label_of_the_axis(drawn: list[Drawn]) -> None:
    low = [line(name, np.linspace(0.9, 0.001 * index, 9)) for index, name in enumerate(LONG)]
    assert_tidy(curves("t", "share of the picture removed, " * 4, "y", low), drawn[0])


@EACH
@pytest.mark.parametrize("count", [1, 5, len(ODD)])
def test_odd_names_are_drawn_as_they_stand(kind: str, count: int, drawn: list[Drawn]) -> None:
    assert_tidy(KINDS[kind](ODD[:count]), drawn[0])
    assert r"$\alpha$-cam" in drawn[0].words()
    assert not any(text.get_parse_math() or text.get_usetex() for text in drawn[0].texts)
    if count > 5:
        assert {"a_b_c^2", "x<y & <script>", "gnp.exe", "a b cd", "e\u0301\u0301"} <= set(drawn[0].words())


@pytest.mark.parametrize("words", ["", "  ", "word " * 150, "w" * 3_000, r"$\frac{1$", "\x00\u202e", "虎" * 400])
def test_odd_titles_and_labels_are_drawn(words: str, drawn: list[Drawn]) -> None:
    assert_tidy(curves(words, words, words, falling(["a", "b"])), drawn[0])
    assert_tidy(critical_differences(words, ["a", "b"], [1, 2], None, []), drawn[1])
    assert_tidy(intervals(words, words, rows(["a", "b"])), drawn[2])


def test_nothing_but_names_that_are_too_long_is_shortened_and_then_in_the_middle(drawn: list[Drawn]) -> None:
    KINDS["curves"](["begin-" + "x" * 200 + "-end", "grad-cam"])
    (short,) = [words for words in drawn[0].words() if words.startswith("begin-")]
    assert "…" in short
    assert short.endswith("-end")
    assert "grad-cam" in drawn[0].words()


def test_letters_that_the_font_lacks_are_shown_as_missing(drawn: list[Drawn]) -> None:
    KINDS["curves"](["虎a"])
    assert "\ufffda" in drawn[0].words()


@EACH
def test_the_picture_is_the_same_again_and_from_many_threads(kind: str) -> None:
    wanted = KINDS[kind](LONG[:3])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: KINDS[kind](LONG[:3]), range(8)))
    assert all(one.tobytes() == wanted.tobytes() for one in found)


@EACH
def test_the_users_settings_of_matplotlib_neither_matter_nor_change(kind: str) -> None:
    wanted = KINDS[kind](LONG[:3])
    theirs = {
        "text.usetex": True,
        "text.parse_math": True,
        "font.size": 30,
        "font.family": "serif",
        "figure.facecolor": "black",
        "savefig.facecolor": "red",
        "lines.linewidth": 9,
        "lines.color": "red",
        "text.color": "red",
        "figure.autolayout": True,
        "figure.dpi": 33,
        "axes.unicode_minus": False,
    }
    with matplotlib.rc_context(theirs):
        before = dict(matplotlib.rcParams)
        assert KINDS[kind](LONG[:3]).tobytes() == wanted.tobytes()
        assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_loaded_and_matplotlib_only_when_something_is_drawn() -> None:
    code = """
import sys
from sightline.render.plots import Row, intervals
assert "matplotlib" not in sys.modules
intervals("t", "x", [Row("a", 0.5, 0.4, 0.6)])
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


# -------------------------------------------------------------------------------------------------------------- curves


def heights(page: Drawn, low: float = 0.0, high: float = 1.0) -> Callable[[float], float]:
    """From values to pixels, read from two ticks of the y axis."""
    ticks = {
        text.get_text(): text.get_position()[1] - 0.36 * 12 for text in page.texts if text.get_ha() == "right"
    }  # texts stand 0.36 of their size below the middle of their capitals
    bottom, top = (ticks[f"{value:.1f}".replace("-", "−")] for value in (low, high))
    return lambda value: bottom + (value - low) / (high - low) * (top - bottom)


def test_a_curve_lies_where_its_values_are_on_an_axis_from_0_to_1(drawn: list[Drawn]) -> None:
    values = np.array([0.3, 0.5, 0.45, 0.4, 0.35, 0.31])
    curves("t", "x", "y", [line("grad-cam", values)])
    y = heights(drawn[0])
    (found,) = drawn[0].long_lines()
    np.testing.assert_allclose(found.get_ydata(), y(values))
    assert (np.diff(found.get_xdata()) > 0).all()
    np.testing.assert_allclose(np.diff(found.get_xdata(), 2), 0, atol=1e-9)


def test_the_band_lies_between_its_edges(drawn: list[Drawn]) -> None:
    values = np.array([0.3, 0.5, 0.45, 0.4, 0.35, 0.31])
    curves("t", "x", "y", [line("grad-cam", values, low=values - 0.1, high=values + 0.2)])
    y = heights(drawn[0])
    (area,) = drawn[0].areas
    corners = area.get_xy()[:-1]
    np.testing.assert_allclose(corners[:6, 1], y(values - 0.1))
    np.testing.assert_allclose(corners[6:, 1], y(values + 0.2)[::-1])


def test_values_outside_of_0_to_1_stretch_the_axis_and_all_of_them_are_seen(drawn: list[Drawn]) -> None:
    curves("t", "x", "y", [line("grad-cam", [1.0, 0.5, -0.4, -0.8, -1.0], low=None, high=None)])
    y = heights(drawn[0], -1.0, 1.0)
    (found,) = drawn[0].long_lines()
    np.testing.assert_allclose(found.get_ydata(), [y(value) for value in (1.0, 0.5, -0.4, -0.8, -1.0)])
    assert "−0.5" in drawn[0].words(), "with a minus sign, not a hyphen"


def test_the_axis_reaches_from_0_to_1_also_when_the_curve_does_not(drawn: list[Drawn]) -> None:
    curves("t", "x", "y", [line("grad-cam", np.linspace(0.41, 0.42, 9), low=None, high=None)])
    assert {"0.0", "0.2", "0.8", "1.0"} <= set(drawn[0].words())


def test_undefined_values_leave_a_gap_and_a_lonely_one_is_a_dot(drawn: list[Drawn]) -> None:
    values = np.linspace(0.9, 0.1, 11)
    values[[3, 4, 6]] = NAN
    values[9:] = NAN
    picture = curves("t", "x", "y", [line("grad-cam", values)])
    assert_tidy(picture, drawn[0])
    (curve,) = [one for one in drawn[0].long_lines() if one.get_marker() == "none"]
    np.testing.assert_array_equal(np.isnan(curve.get_ydata()), np.isnan(values))
    (dot,) = drawn[0].dots()
    np.testing.assert_allclose(dot.get_ydata(), heights(drawn[0])(values[5]))
    blue = (np.asarray(picture) == [round(255 * one) for one in to_rgb(BLUE)]).all(axis=2)
    x = np.asarray(dot.get_xdata())[0] * SCALE
    step = np.nanmin(np.diff(curve.get_xdata())) * SCALE
    assert blue[:, round(x - 5) : round(x + 5)].any(), "the dot is seen"
    for missing in (3, 4, 6, 9):
        middle = round(x + (missing - 5) * step)
        assert not blue[:, middle - 20 : middle + 20].any(), "nothing is drawn where nothing is known"


def test_a_band_of_one_point_is_seen(drawn: list[Drawn]) -> None:
    curves("t", "x", "y", [line("a", [0.5], low=[0.2], high=[0.8], x=[3.0])])
    y = heights(drawn[0])
    found = [one for one in drawn[0].lines if np.allclose(one.get_ydata(), [y(0.2), y(0.8)])]
    assert [to_hex(one.get_color()) for one in found] == [BLUE]


def test_a_curve_without_any_value_is_named_and_said_to_have_none(drawn: list[Drawn]) -> None:
    for values in ([NAN] * 5, []):
        assert_tidy(curves("t", "x", "y", [line("lost", values), line("here")]), drawn[-1])
        assert {"lost (no value)", "here"} <= set(drawn[-1].words())
    assert_tidy(curves("t", "x", "y", [line("lost", [NAN])]), drawn[-1])


def test_curves_with_gaps_and_without_bands_are_drawn_for_many_methods(drawn: list[Drawn]) -> None:
    series = falling(LONG)
    holed = [
        line(one.name, np.where(np.arange(26) % (index + 2) == 1, NAN, one.mean), low=None, high=None)
        for index, one in enumerate(series)
    ]
    assert_tidy(curves("t", "x", "y", holed), drawn[0])


@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 1e5, 1e12])
@pytest.mark.parametrize("values", [[-0.3, 0.2, 1.1], [-2.0, -2.0, -2.0], [1e3, 1e3 + 1e-3, 1e3]])
def test_values_of_any_size_have_ticks_that_differ(scale: float, values: list[float], drawn: list[Drawn]) -> None:
    mean = np.array(values) * scale
    assert_tidy(curves("t", "x", "y", [line("a", mean, low=None, high=None, x=mean.cumsum())]), drawn[0])
    ticks = [text.get_text() for text in drawn[0].texts if text.get_ha() == "right"]
    assert 2 <= len(ticks) == len(set(ticks))


def test_thirty_methods_differ_in_colour_and_style_and_baselines_are_grey_and_dashed(drawn: list[Drawn]) -> None:
    series = [*falling(LONG), line("random", baseline=True), line("centre", baseline=True)]
    curves("t", "x", "y", [Line(**(vars(one) | {"baseline": one.name in ("random", "centre")})) for one in series])
    looks = [
        (to_hex(one.get_color()), one._unscaled_dash_pattern[1])
        for one in drawn[0].long_lines()
        if one.get_marker() == "none"
    ]
    assert len(looks) == len(set(looks)) == 32
    greys = [look for look in looks if len(set(to_rgb(look[0]))) == 1 and look[0] != "#000000"]
    assert len(greys) == 2
    assert all(dashes is not None for _, dashes in greys)


def test_two_methods_differ_in_style_too_for_those_who_see_no_colours(drawn: list[Drawn]) -> None:
    curves("t", "x", "y", falling(["a", "b"]))
    styles = [one._unscaled_dash_pattern[1] for one in drawn[0].long_lines()]
    assert len(set(styles)) == 2


def test_names_stand_in_the_order_of_the_ends(drawn: list[Drawn]) -> None:
    ends = {"low": 0.1, "high": 0.9, "mid": 0.5, "mid too": 0.501}
    curves("t", "x", "y", [line(name, np.linspace(0.3, end, 9)) for name, end in ends.items()])
    places = {name: drawn[0].at(name)[1] for name in ends}
    assert sorted(places, key=lambda name: places[name]) == ["high", "mid too", "mid", "low"]
    y = heights(drawn[0])
    assert places["high"] - 0.36 * 13 == pytest.approx(y(0.9))


@pytest.mark.parametrize(("count", "times"), [(8, 1), (9, 2)])
def test_more_than_eight_curves_have_a_legend_too(count: int, times: int, drawn: list[Drawn]) -> None:
    names = [f"method-{index}" for index in range(count)]
    curves("t", "x", "y", falling(names))
    assert [drawn[0].words().count(name) for name in names] == [times] * count


@given(
    st.lists(st.floats(-100, 900), min_size=1, max_size=20).map(sorted),
    st.floats(1, 30),
)
def test_labels_are_spread_apart_within_the_page_and_not_moved_without_need(wanted: list[float], step: float) -> None:
    high = 800.0
    found = plots._spread(wanted, step, 0.0, high)
    assert all(after - before >= step - 1e-9 for before, after in pairwise(found))
    assert found[0] >= 0
    assert found[-1] <= max(high, step * (len(wanted) - 1)) + 1e-9
    assert plots._spread(found, step, 0.0, high) == pytest.approx(found)
    if all(after - before >= step for before, after in pairwise(wanted)) and wanted[0] >= 0 and wanted[-1] <= high:
        assert found == pytest.approx(wanted)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=8).map(sorted), st.integers(0, 99))
def test_no_other_places_of_labels_are_nearer_to_the_wanted(wanted: list[float], seed: int) -> None:
    def cost(places: Sequence[float]) -> float:
        return sum((place - want) ** 2 for place, want in zip(places, wanted, strict=True))

    best = plots._spread(wanted, 15.0, 0.0, 200.0)
    random = np.random.default_rng(seed)
    for size in (0.1, 1.0, 20.0):
        other = np.sort(np.array(best) + random.normal(0, size, len(best)))
        other = np.maximum.accumulate(other - 15 * np.arange(len(best))) + 15 * np.arange(len(best))
        if other[0] >= 0 and other[-1] <= 200:
            assert cost(best) <= cost(other.tolist()) + 1e-9


@pytest.mark.parametrize(
    ("series", "words"),
    [
        ([], "no curve"),
        ([line(low=None)], "one edge of a band"),
        ([line(x=[1.0, 2.0])], "shapes"),
        ([line(x=np.zeros((11, 1)), mean=np.zeros((11, 1)), low=None, high=None)], "shapes"),
        ([line(values=[0.1, np.inf])], "infinite"),
    ],
)
def test_curves_that_can_not_be_drawn_are_refused(series: list[Line], words: str) -> None:
    with pytest.raises(OutputError, match=words):
        curves("t", "x", "y", series)


# ---------------------------------------------------------------------------------------------------------- mean ranks


def rank_axis(page: Drawn, count: int) -> Callable[[float], float]:
    """From ranks to pixels, read from the numbers of the axis."""
    first, last = page.at("1")[0], page.at(str(count))[0]
    return lambda rank: first + (rank - 1) / (count - 1) * (last - first)


def widths(page: Drawn, width: float) -> list[tuple[float, float]]:
    """From where to where the lines of this thickness go."""
    return [tuple(one.get_xdata()) for one in page.lines if one.get_linewidth() == width]


def test_ranks_bars_and_ruler_lie_where_their_numbers_are(drawn: list[Drawn]) -> None:
    ranks = [3.143, 2.000, 2.893, 1.964]
    critical_differences("t", ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"], ranks, 1.12, [(3, 1, 2), (2, 0)])
    page = drawn[0]
    x = rank_axis(page, 4)
    assert x(1) < x(4), "the best is at the left"
    bars = widths(page, 4.5)
    assert bars == [
        (pytest.approx(x(1.964) - 2), pytest.approx(x(2.893) + 2)),
        (pytest.approx(x(2.893) - 2), pytest.approx(x(3.143) + 2)),
    ]
    assert (pytest.approx(x(1)), pytest.approx(x(1) + x(2.12) - x(1))) in widths(page, 1.6)
    assert "critical difference = 1.12" in page.words()
    stems = sorted(one.get_xdata()[0] for one in page.lines if len(one.get_xdata()) == 3)
    np.testing.assert_allclose(stems, [x(rank) for rank in sorted(ranks)])
    assert page.at("C4.5+m+cf")[0] < x(1) < x(4) < page.at("C4.5")[0], "names stand on both sides"
    assert {"3.14", "2.00", "2.89", "1.96"} <= set(page.words())


def test_bars_that_overlap_lie_below_each_other(drawn: list[Drawn]) -> None:
    ranks = np.linspace(1, 10, 10)
    critical_differences("t", list("abcdefghij"), ranks, 3.5, [tuple(range(start, start + 4)) for start in range(7)])
    bars = [(one.get_xdata(), one.get_ydata()[0]) for one in drawn[0].lines if one.get_linewidth() == 4.5]
    assert len(bars) == 7
    for (one, level), (other, below) in combinations(bars, 2):
        assert level != below or one[1] < other[0] or other[1] < one[0]


def test_without_a_critical_difference_the_picture_says_so_in_words(drawn: list[Drawn]) -> None:
    assert_tidy(critical_differences("t", ["a", "b"], [1.2, 1.8], None, []), drawn[0])
    assert any("no critical difference" in words for words in drawn[0].words())
    assert not widths(drawn[0], 1.6)
    assert not widths(drawn[0], 4.5)


def test_methods_that_all_differ_are_said_to_and_only_then(drawn: list[Drawn]) -> None:
    critical_differences("t", ["a", "b", "c"], [1, 2, 3], 0.5, [])
    critical_differences("t", ["a", "b", "c"], [1, 1.1, 3], 0.5, [])
    critical_differences("t", ["a"], [1], 0.5, [])
    said = [any("All methods differ" in words for words in page.words()) for page in drawn]
    assert said == [True, False, False]


@pytest.mark.parametrize("names", [LONG[:4], ["a", "b", "c", "d"]])
def test_a_critical_difference_longer_than_the_picture_has_an_arrow_and_says_so(
    names: list[str], drawn: list[Drawn]
) -> None:
    assert_tidy(critical_differences("t", names, [1, 2, 3, 4], 90.0, [(0, 1, 2, 3)]), drawn[0])
    assert "critical difference = 90.00, longer than the picture is wide" in drawn[0].words()


def test_methods_without_a_rank_are_named_below(drawn: list[Drawn]) -> None:
    assert_tidy(critical_differences("t", ["a", "b", "c"], [NAN, 1.5, NAN], 1.0, []), drawn[0])
    assert "Without a rank: a, c" in drawn[0].words()
    assert_tidy(critical_differences("t", ["a"], [NAN], None, []), drawn[1])


def test_lines_to_both_sides_never_meet_though_the_ranks_are_equal(drawn: list[Drawn]) -> None:
    critical_differences("t", list("abcdef"), [3.5] * 6, 1.0, [])
    elbows = [one for one in drawn[0].lines if len(one.get_xdata()) == 3]
    assert len({one.get_ydata()[-1] for one in elbows}) == 6


def test_equal_ranks_are_drawn(drawn: list[Drawn]) -> None:
    assert_tidy(critical_differences("t", list("abcd"), [2.5] * 4, 1.0, [(0, 1, 2, 3)]), drawn[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], [], None, []), "0 names"),
        ((["a"], [1.0, 2.0], None, []), "1 names"),
        ((["a", "b"], [0.5, 2.0], None, []), "expected 1 to 2"),
        ((["a", "b"], [1.0, 3.0], None, []), "expected 1 to 2"),
        ((["a", "b"], [1.0, 2.0], NAN, []), "critical difference nan"),
        ((["a", "b"], [1.0, 2.0], 1.0, [(0, 2)]), "indices"),
        ((["a", "b"], [1.0, NAN], 1.0, [(0, 1)]), "with a rank"),
    ],
)
def test_ranks_that_can_not_be_drawn_are_refused(arguments: Any, words: str) -> None:
    with pytest.raises(OutputError, match=words):
        critical_differences("t", *arguments)


# ----------------------------------------------------------------------------------------------------------- intervals


def test_dots_and_whiskers_lie_where_their_numbers_are_the_best_at_the_top(drawn: list[Drawn]) -> None:
    given_ = [Row("worst", 0.2, 0.15, 0.3), Row("best", 0.8, 0.7, 0.85), Row("middle", 0.5, 0.45, 0.55)]
    intervals("t", "x", given_)
    page = drawn[0]
    ticks = {text.get_text(): text.get_position()[0] for text in page.texts if text.get_ha() == "center"}
    first, last = ticks["0.2"], ticks["0.8"]

    def x(value: float) -> float:
        return first + (value - 0.2) / 0.6 * (last - first)

    dots = sorted((float(one.get_ydata()[0]), float(one.get_xdata()[0])) for one in page.dots())
    np.testing.assert_allclose([place for _, place in dots], [x(0.8), x(0.5), x(0.2)])
    for (y, _), row in zip(dots, [given_[1], given_[2], given_[0]], strict=True):
        whiskers = [one.get_xdata() for one in page.lines if list(one.get_ydata()) == [y, y]]
        assert any(np.allclose(one, [x(row.low or NAN), x(row.high or NAN)]) for one in whiskers)
        assert page.at(row.name)[1] - 0.36 * 13 == pytest.approx(y)
        assert page.at(f"{row.mean:.3f}")[1] - 0.36 * 12 == pytest.approx(y)


def test_lower_can_be_better(drawn: list[Drawn]) -> None:
    intervals("t", "x", [Row("a", 0.2, 0.1, 0.3), Row("b", 0.8, 0.7, 0.9)], better="lower")
    assert drawn[0].at("a")[1] < drawn[0].at("b")[1]


def test_baselines_are_vertical_lines_with_names_through_all_rows(drawn: list[Drawn]) -> None:
    intervals("t", "x", rows(["a", "b", "c"]))
    page = drawn[0]
    assert len(page.dots()) == 3
    tall = [
        one
        for one in page.lines
        if one.get_xdata()[0] == one.get_xdata()[-1] and one.get_linewidth() == 2 and np.ptp(one.get_ydata()) > 60
    ]
    assert len(tall) == 2
    for one, name in zip(tall, ["centre 0.430", "random 0.210"], strict=True):
        x, y = page.at(name)
        assert x - one.get_xdata()[0] == pytest.approx(5)
        assert min(one.get_ydata()) < y < max(one.get_ydata())
    assert len(page.areas) == 1, "random has an interval and centre has none"


@pytest.mark.parametrize("seed", range(8))
def test_names_of_many_baselines_never_run_into_each_other(seed: int, drawn: list[Drawn]) -> None:
    random = np.random.default_rng(seed)
    count = 1 + seed % 7
    many = [Row(f"baseline {LONG[index]}", random.uniform(0, 1), None, None, True) for index in range(count)]
    assert_tidy(intervals("t", "x", [*many, Row("a", 0.5, 0.4, 0.6)]), drawn[0])


@pytest.mark.parametrize("seed", range(8))
def test_no_line_of_a_baseline_runs_through_the_name_of_another(seed: int, drawn: list[Drawn]) -> None:
    places = np.random.default_rng(seed).uniform(0, 0.4, 5).tolist()
    many = [Row(f"baseline {index}", place, None, None, True) for index, place in enumerate(places)]
    intervals("t", "x", [*many, Row("a", 1.0, 0.9, 1.1)])
    page = drawn[0]
    for text, box in page.boxes.items():
        if text.get_text().startswith("baseline"):
            y = text.get_position()[1]
            crossing = [
                one
                for one in page.lines
                if one.get_linewidth() == 2
                and box.x0 < one.get_xdata()[0] * SCALE < box.x1
                and min(one.get_ydata()) < y < max(one.get_ydata())
            ]
            assert not crossing, text.get_text()


def test_a_method_without_an_interval_has_a_hollow_dot_and_one_without_a_value_has_none(drawn: list[Drawn]) -> None:
    given_ = [
        Row("undefined", None, None, None),
        Row("nan", NAN, 0.1, 0.9),
        Row("single", 0.5, None, None),
        Row("sure", 0.3, 0.2, 0.4),
        Row("nowhere", None, None, None, True),
    ]
    assert_tidy(intervals("t", "x", given_), drawn[0])
    page = drawn[0]
    assert [one.get_markerfacecolor() for one in page.dots()] == ["white", plots._COLOURS[0]]
    assert page.words().count("no value") == 2
    assert page.at("single")[1] < page.at("sure")[1] < page.at("undefined")[1] < page.at("nan")[1]
    assert {"A hollow dot has no interval.", "Without a value: nowhere"} <= set(page.words())


def test_plain_tuples_are_rows(drawn: list[Drawn]) -> None:
    assert_tidy(intervals("t", "x", [("a", 0.5, 0.4, 0.6, False), ("random", 0.2, None, None, True)]), drawn[0])


@pytest.mark.parametrize("only", [Row("a", 0.5, None, None), Row("random", 0.5, None, None, True), rows([])[0]])
def test_one_row_alone_is_drawn(only: Row, drawn: list[Drawn]) -> None:
    assert_tidy(intervals("t", "x", [only]), drawn[0])


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e5, 1e12])
def test_intervals_of_any_size_are_drawn(scale: float, drawn: list[Drawn]) -> None:
    given_ = [Row("a", -0.5 * scale, -0.9 * scale, 0.1 * scale), Row("b", scale, scale, scale)]
    assert_tidy(intervals("t", "x", given_), drawn[0])


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ([], "no interval"),
        ([Row("a", np.inf, None, None)], "infinite"),
        ([Row("a", 0.5, -np.inf, 0.6)], "infinite"),
        ([Row("a", 0.5, 0.4, None)], "one end"),
    ],
)
def test_intervals_that_can_not_be_drawn_are_refused(given_: list[Row], words: str) -> None:
    with pytest.raises(OutputError, match=words):
        intervals("t", "x", given_)


# ----------------------------------------------------------------------------------------------------------- confusion


def test_what_is_right_is_blue_and_each_cell_stands_in_the_row_of_what_is_true(drawn: list[Drawn]) -> None:
    picture = np.asarray(confusion("", ["ash", "elm", "oak"], np.array([[8, 2, 0], [0, 0, 5], [1, 0, 99]])))
    (page,) = drawn
    for words, row, column in (("8", "ash", "ash"), ("2", "ash", "elm"), ("99", "oak", "oak"), ("5", "elm", "oak")):
        x, y = page.at(words)
        down = next(
            text.get_position()[1] for text in page.texts if text.get_text() == row and text.get_ha() == "right"
        )
        across = next(
            text.get_position()[0] for text in page.texts if text.get_text() == column and text.get_ha() == "center"
        )
        assert abs(y - down) < 20
        assert abs(x - across) < 1
        red, _, blue = picture[round(SCALE * y) + 60, round(SCALE * x)].astype(int)
        assert (blue > red) == (row == column), words
    assert {"80.0 %", "20.0 %", "99.0 %", "100.0 %"} <= {*page.words()}
    zero = next(text for text in page.texts if text.get_text() == "0")
    x, y = zero.get_position()
    assert (picture[round(SCALE * y) + 60, round(SCALE * x)] == 255).all()


def test_a_class_without_pictures_has_no_shares(drawn: list[Drawn]) -> None:
    confusion("", ["ash", "elm"], np.array([[0, 0], [1, 3]]))
    assert [words for words in drawn[0].words() if "%" in words] == ["25.0 %", "75.0 %"]


def test_of_many_classes_the_pairs_that_are_confused_most_are_listed(drawn: list[Drawn]) -> None:
    counts = np.diag(np.full(100, 10))
    counts[7, 42], counts[42, 7], counts[0, 99] = 5, 3, 4
    confusion("", [f"tree {index}" for index in range(100)], counts)
    words = drawn[0].words()
    assert words[words.index("Confused most often:") + 1 :] == [
        *(
            "tree 7 taken for tree 42: 5 of 15",
            "tree 0 taken for tree 99: 4 of 14",
            "tree 42 taken for tree 7: 3 of 13",
        ),
    ]
    assert "The 100 classes stand in their order, from tree 0 to tree 99." in words
    assert not {"10", "tree 1"} & {*words}


def test_many_classes_without_a_mistake_are_said_to_have_none(drawn: list[Drawn]) -> None:
    confusion("", [f"tree {index}" for index in range(50)], np.diag(np.full(50, 2)))
    assert "No picture was taken for another class." in drawn[0].words()


@pytest.mark.parametrize("counts", [np.zeros((2, 3)), np.zeros(2), np.zeros((0, 0))])
def test_counts_of_other_classes_are_refused(counts: np.ndarray) -> None:
    with pytest.raises(OutputError, match=r"expected \(K, K\) for K names"):
        confusion("", ["ash"] * 2 * bool(counts.size), counts)


# ------------------------------------------------------------------------------------------------------- whole and marked


def test_what_is_counted_has_no_numbers_in_between_and_a_marked_place_its_words(drawn: list[Drawn]) -> None:
    picture = curves("Loss", "epoch", "", [line(values=[0.8, 0.4, 0.2], x=[1, 2, 3])], whole=True, marked=(2, "kept"))
    (page,) = drawn
    numbers = [words for words in page.words() if words.replace(".", "").isdigit() and float(words) >= 1]
    assert sorted(numbers) == ["1", "1.0", "2", "3"]  # 1.0 is of the y axis
    assert page.at("kept")[0] == page.at("2")[0]
    assert_tidy(picture, page)


def test_a_single_place_that_is_counted_stands_alone_on_its_axis(drawn: list[Drawn]) -> None:
    curves("Loss", "epoch", "", [line(values=[0.8], x=[100])], whole=True)
    assert [words for words in drawn[0].words() if words.isdigit()] == ["100"]
