"""What a target means is drawn where it lies on the photograph, at any size of the drawing, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sightline.engine.asked import Mark
from sightline.render.marks import _free, marked, numbered

PHOTO = (200, 100)
GREY = (90, 90, 90)


def changed(mark: Mark | None, scale: int) -> np.ndarray:
    """Which pixels of a drawing, `scale` times as large as the photograph, the mark changed."""
    drawn = Image.new("RGB", (PHOTO[0] * scale, PHOTO[1] * scale), GREY)
    return (np.asarray(marked(drawn, mark, PHOTO)) != np.asarray(drawn)).any(axis=2)


@pytest.mark.parametrize("scale", [1, 3])
def test_a_box_is_a_line_round_its_place(scale: int) -> None:
    found = changed(Mark(box=(40.0, 20.0, 120.0, 80.0)), scale)
    rows, columns = np.nonzero(found)
    near = 10
    assert abs(columns.min() - 40 * scale) <= near
    assert abs(columns.max() - 120 * scale) <= near
    assert abs(rows.min() - 20 * scale) <= near
    assert abs(rows.max() - 80 * scale) <= near
    assert not found[(20 * scale + near) : (80 * scale - near), (40 * scale + near) : (120 * scale - near)].any()


@pytest.mark.parametrize("scale", [1, 3])
def test_a_point_is_a_cross_round_it(scale: int) -> None:
    rows, columns = np.nonzero(changed(Mark(point=(150.0, 30.0)), scale))
    assert abs((columns.min() + columns.max()) / 2 - 150 * scale) <= 2
    assert abs((rows.min() + rows.max()) / 2 - 30 * scale) <= 2


@pytest.mark.parametrize("scale", [1, 3])
def test_a_region_is_its_outline(scale: int) -> None:
    region = np.zeros((100, 200), bool)
    region[20:80, 40:120] = True
    found = changed(Mark(region=region), scale)
    rows, columns = np.nonzero(found)
    assert abs(columns.min() - 40 * scale) <= 10
    assert abs(rows.max() - 80 * scale) <= 10
    assert not found[30 * scale : 70 * scale, 50 * scale : 110 * scale].any()


@pytest.mark.parametrize(
    "mark", [None, Mark(), Mark(text="a cat", words=(2, 5)), Mark(region=np.ones((100, 200), bool))]
)
def test_what_has_no_place_draws_nothing(mark: Mark | None) -> None:
    assert not changed(mark, 2).any()


@pytest.mark.parametrize(
    "box",
    [(-50.0, -20.0, 400.0, 300.0), (199.0, 99.0, 200.0, 100.0), (10.0, 10.0, 10.0, 10.0), (300.0, 0.0, 310.0, 5.0)],
)
def test_a_box_at_the_edge_or_beyond_it_is_drawn_without_an_error(box: tuple[float, float, float, float]) -> None:
    drawn = Image.new("RGB", PHOTO, GREY)
    assert marked(drawn, Mark(box=box), PHOTO).size == PHOTO
    assert numbered(drawn, [box], PHOTO).size == PHOTO


def test_boxes_are_numbered_where_they_lie_and_the_drawing_itself_stays() -> None:
    drawn = Image.new("RGB", (400, 200), GREY)
    before = drawn.tobytes()
    found = (np.asarray(numbered(drawn, [(20, 10, 60, 40), (120, 50, 180, 90)], PHOTO)) != GREY).any(axis=2)
    assert drawn.tobytes() == before
    assert found[20:80, 40:120].any()
    assert found[100:180, 240:360].any()
    assert not found[:, 130:230].any()
    assert numbered(drawn, [], PHOTO) is drawn


def test_tags_of_boxes_that_lie_on_each_other_can_all_be_read() -> None:
    drawn = Image.new("RGB", (400, 300), GREY)
    boxes = [(100 + one, 80 + one, 300 - one, 250 + one) for one in range(9)] + [
        (0, 0, 399, 299),
        (2, 2, 20, 16),
        (1, 1, 21, 17),
    ]
    taken: list[tuple[int, int, int, int]] = []
    for box in boxes:
        found = _free(tuple(box), (19, 17), drawn.size, taken)  # type: ignore[arg-type]
        assert 0 <= found[0] < found[2] < 400
        assert 0 <= found[1] < found[3] < 300
        assert not any(
            one[0] <= found[2] and found[0] <= one[2] and one[1] <= found[3] and found[1] <= one[3] for one in taken
        )
        taken.append(found)
    assert (np.asarray(numbered(drawn, boxes, drawn.size)) == 20).all(axis=2).sum() > 12 * 100  # the dark of each tag


def test_where_no_place_is_left_the_surest_number_lies_on_top() -> None:
    drawn = Image.new("RGB", (20, 18), GREY)
    box = (0.0, 0.0, 19.0, 17.0)
    alone, both = (np.asarray(numbered(drawn, [box] * count, drawn.size)) for count in (1, 2))
    assert bool((alone == both).all())
