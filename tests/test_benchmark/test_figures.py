"""Results as figures."""

import itertools
from dataclasses import replace

from matplotlib.text import Text

from mmefficientmod.benchmark.figures import (
    growth_figure,
    latency_figure,
    pareto,
)
from mmefficientmod.benchmark.results import Row


def test_growth_has_panels_for_measured_quantities_only(make_result, case):
    results = [
        make_result(
            [Row('a', times=[side], peak=side, saved=saved)],
            case=replace(case, mode=mode, height=side, width=side),
        )
        for side in (32, 64)
        for mode, saved in (('infer', None), ('train', side))
    ]
    labels = [x.get_ylabel() for x in growth_figure(results).axes]
    assert sorted(labels) == ['ms', 'ms', 'peak MB', 'peak MB', 'saved MB']


def test_names_do_not_overlap_and_lie_in_the_panel(make_result, case):
    rows = [
        Row(f'model_{n}', times=[1 + n / 100], params=10**7 + n,
            published=dict(top1=80 + n / 10, top1_distilled=82.0))
        for n in range(6)
    ]  # fmt: skip
    infer, train = make_result(rows), replace(case, mode='train')
    figure = latency_figure([infer, make_result(rows, case=train)])
    time, params = figure.axes
    assert (time.get_xlabel(), params.get_xlabel()) == ('ms', 'M parameters')
    for ax in figure.axes:
        assert {x.get_text() for x in ax.texts} == {x.model for x in rows}
        boxes = [Text.get_window_extent(x) for x in ax.texts]
        assert not any(
            a.overlaps(b) for a, b in itertools.combinations(boxes, 2)
        )
        assert all(ax.bbox.fully_overlaps(box) for box in boxes)
    assert latency_figure([make_result(rows, within='own.py')]) is None


def test_pareto_keeps_points_that_no_other_dominates():
    points = [(3, 70), (1, 60), (2, 60), (2, 75), (4, 76)]
    assert pareto(points) == [(1, 60), (2, 75), (4, 76)]
