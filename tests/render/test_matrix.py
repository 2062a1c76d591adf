"""The matrix of correlations: numbers and names can be read, and similar things stand together."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.text import Text

from sightline.errors import OutputError
from sightline.render.matrix import correlations, neighbours
from sightline.render.page import Page

LONG = [f"a-method-with-a-rather-long-name-of-forty{index:02d}"[-40:] for index in range(30)]


def made(count: int, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with ones on its diagonal and values of both signs."""
    values = np.random.default_rng(seed).uniform(-1, 1, (count, count))
    values = (values + values.T) / 2
    np.fill_diagonal(values, 1)
    return values


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> list[Page]:
    """The pages that were drawn."""
    seen: list[Page] = []
    original = Page.image

    def image(self: Page, height: float) -> object:
        seen.append(self)
        return original(self, height)

    monkeypatch.setattr(Page, "image", image)
    return seen


@pytest.mark.parametrize("names", [["a", "b"], ["grad-cam", "rise", "lime", "saliency"], LONG])
def test_no_text_runs_into_another_or_out_of_the_page(names: list[str], page: list[Page]) -> None:
    picture = correlations("How far the methods agree", "a note", names, made(len(names)), "a remark")
    boxes = {
        one.get_text(): one.get_window_extent(page[0]._canvas.get_renderer())
        for one in page[0]._figure.artists
        if isinstance(one, Text)
    }
    assert len(boxes) >= len(names)
    for text, box in boxes.items():
        assert box.x0 >= 0, text
        assert box.x1 <= picture.width, text
        assert box.y0 >= 0, text
        assert box.y1 <= picture.height, text
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0, (one, other)


def test_the_numbers_of_thirty_methods_are_not_smaller_than_ten_pixels_of_the_page(page: list[Page]) -> None:
    correlations("", "", LONG, made(30))
    numbers = [one for one in page[0]._figure.artists if isinstance(one, Text) and "0." in one.get_text()]
    assert len(numbers) == 870
    assert min(one.get_fontsize() for one in numbers) >= 10


def test_for_is_red_against_is_blue_and_what_has_no_correlation_is_grey() -> None:
    values = np.array([[1.0, -0.9, np.nan], [-0.9, 1.0, np.nan], [np.nan] * 3])
    picture = np.asarray(correlations("", "", ["a", "b", "c"], values)).astype(int)
    red, blue = picture[..., 0] - picture[..., 2] > 60, picture[..., 2] - picture[..., 0] > 60
    grey = (picture == 225).all(axis=2)
    assert min(red.sum(), blue.sum(), grey.sum()) > 10_000


def test_similar_ones_stand_beside_each_other_and_those_without_a_value_last() -> None:
    groups = np.array([0, 1, 2, 0, 1, 2, 0])
    values = np.where(groups[:, None] == groups[None], 0.9, -0.2)
    values[5], values[:, 5] = np.nan, np.nan
    order = neighbours(values)
    assert sorted(order) == list(range(7))
    assert order[-1] == 5
    shown = groups[order[:-1]]
    assert sum(one != other for one, other in pairwise(shown)) == 2


def test_names_and_values_that_do_not_fit_together_are_refused() -> None:
    for names, values in ((["a"], made(2)), ([], np.zeros((0, 0)))):
        with pytest.raises(OutputError, match=r"expected \(n, n\) for n names"):
            correlations("", "", names, values)
