"""The plots of the page: fronts, maps of types, labels, axes."""

from __future__ import annotations

import math
import re

import pytest

from quantmill.measure.record import ModelFile, TensorRow
from quantmill.measure.report import HeatMap
from quantmill.measure.report.collect import pareto, type_map
from quantmill.measure.report.svg import CHARACTER, FONT, HEIGHT, WIDTH, Line, Point, scatter


def test_pareto_front() -> None:
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 3.5), (2.0, 2.0), (4.0, 1.0), (1.0, 3.0)]
    assert pareto(points) == [1, 3, 0]
    assert pareto([]) == []


def test_type_map_places_tensors() -> None:
    rows = (
        TensorRow("blk.0.attn_q.weight", "Q4_K", 256, 144),
        TensorRow("blk.10.attn_q.weight", "Q8_0", 256, 272),
        TensorRow("blk.2.attn_q.weight", "Q2_K", 256, 84),
        TensorRow("blk.0.attn_norm.weight", "F32", 256, 1024),
        TensorRow("token_embd.weight", "Q6_K", 256, 210),
    )
    found = type_map(ModelFile("m", "m.gguf", 1, 1, 4.0, "", "llama", rows))
    assert found.layers == ("0", "2", "10", "—")
    assert found.kinds == ("attn_q", "token_embd")
    assert found.text == (("Q4_K", ""), ("Q2_K", ""), ("Q8_0", ""), ("", "Q6_K"))
    levels = [found.level[i][0] for i in (1, 0, 2)]
    assert levels == sorted(levels)
    assert isinstance(found, HeatMap)


Box = tuple[float, float, float, float]


def _texts(svg: str) -> list[Box]:
    """Boxes of all point labels, from their places and lengths."""
    found = re.findall(r'<text class="(?:label|base)" x="([\d.-]+)" y="([\d.-]+)">([^<]*)</text>', svg)
    return [(float(x), float(y) - FONT + 2, float(x) + CHARACTER * len(t), float(y) + 3) for x, y, t in found]


def test_labels_cover_neither_each_other_nor_points() -> None:
    names = [f"Q{i}_K_{size}" for i in range(2, 7) for size in "SML"]
    points = [Point(3 + 0.1 * i, 0.1 / (1 + i % 5), 0.001, name, name) for i, name in enumerate(names)]
    svg = scatter(points, "size, GiB", "KLD", log=True, line=Line(0.05, "base 0.05"))
    boxes = _texts(svg)
    assert len(boxes) >= 6
    circles = [
        (float(x), float(y)) for x, y in re.findall(r'<circle class="\w+" cx="([\d.]+)" cy="([\d.]+)"', svg)
    ]
    assert len(circles) == len(points)
    for i, a in enumerate(boxes):
        assert a[0] >= 0
        assert a[2] <= WIDTH
        assert a[3] <= HEIGHT
        for b in boxes[i + 1 :]:
            assert not (a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])
        for x, y in circles:
            assert not (a[0] < x + 4 and x - 4 < a[2] and a[1] < y + 4 and y - 4 < a[3])
    assert_labels_belong(svg, points)


def assert_labels_belong(svg: str, points: list[Point]) -> None:
    """The nearest point to a label is its own."""
    circles = {
        hint: (float(x), float(y))
        for x, y, hint in re.findall(
            r'<circle class="\w+" cx="([\d.]+)" cy="([\d.]+)" r="4.5"><title>([^<]*)<', svg
        )
    }
    for x, y, label in re.findall(r'<text class="label" x="([\d.-]+)" y="([\d.-]+)">([^<]*)</text>', svg):
        box = (float(x), float(y) - FONT + 2, float(x) + CHARACTER * len(label), float(y) + 3)

        def away(place: tuple[float, float], box: Box = box) -> float:
            return math.dist(place, (min(max(place[0], box[0]), box[2]), min(max(place[1], box[1]), box[3])))

        assert min(circles, key=lambda hint: away(circles[hint])) == label


def test_a_crowd_of_points_keeps_its_labels_apart() -> None:
    points = [
        Point(4 + 0.02 * (i % 6), 0.01 + 0.0005 * (i // 6), 0.0, f"model-{i}", f"model-{i}")
        for i in range(36)
    ]
    svg = scatter(points, "x", "y", False)
    assert_labels_belong(svg, points)
    assert 3 <= len(_texts(svg)) < 36


def test_wide_letters_stay_inside() -> None:
    svg = scatter(
        [Point(1.0, 1.0, 0.0, "量子化" * 9, "x"), Point(2.0, 2.0, 0.0, "量子化" * 12, "x")], "x", "y", False
    )
    assert [len(label) for label in re.findall(r'class="label"[^>]*>([^<]*)<', svg)] == [27]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("ys", [[1.0], [0.0001, 0.5], [0.000002, 0.00005], [27.1, 27.2, 27.15], [3.0, 3.0]])
def test_axes_have_ticks_inside_the_plot(ys: list[float], log: bool) -> None:
    svg = scatter([Point(i + 1, y, 0.0, "x", "x") for i, y in enumerate(ys)], "x", "y", log)
    ticks = re.findall(r'<text class="tick" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', svg)
    vertical = [(float(y), float(text)) for x, y, anchor, text in ticks if anchor == "end"]
    assert 1 <= len(vertical) <= 9
    assert all(0 < y < HEIGHT - 30 for y, _ in vertical)
    # None reaches the title that stands left of them.
    assert all(float(x) - 6.9 * len(text) > 15 for x, y, anchor, text in ticks if anchor == "end")
    # Higher values stand higher.
    assert [text for _, text in sorted(vertical)] == sorted((text for _, text in vertical), reverse=True)
