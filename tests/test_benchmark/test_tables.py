"""Results as tables, and how tables fit in a terminal."""

import io
import os
import re
from dataclasses import replace

import pytest
from rich.console import Console

from mmefficientmod.benchmark.breakdown import BLOCK_KINDS
from mmefficientmod.benchmark.figures import growth_figure
from mmefficientmod.benchmark.results import Row
from mmefficientmod.benchmark.tables import (
    COLUMNS,
    PRIORITY,
    attention_crossover,
    overview,
    result_values,
    table_cells,
    table_columns,
)
from mmefficientmod.benchmark.terminal import print_table
from mmefficientmod.benchmark.training import report as training_report


@pytest.mark.parametrize(
    ('attention', 'text'),
    [
        ((1, 2, 4), 'more time than the modulation blocks from 64x64 on'),
        ((1, 1, 1), 'less time than the modulation blocks at each size'),
    ],
)
def test_attention_crossover_names_the_first_size(
    make_result, case, attention, text
):
    results = []
    for seconds, side in zip(attention, (32, 48, 64), strict=True):
        parts = dict(zip(BLOCK_KINDS, (1.0, 3.0, float(seconds)), strict=True))
        row = Row('some', times=[1.0], breakdown=parts)
        square = replace(case, height=side, width=side)
        results.append(make_result([row], case=square, breakdown=True))
    (found,) = attention_crossover(results[::-1])
    assert text in found
    assert found.startswith('infer, 1x3xHxW, fp32, 1 thread, cpu: in some,')
    assert growth_figure(results) is not None
    # Other models of the same case are not another size.
    row = Row('other', times=[1.0], breakdown=parts)
    results[1:] = [make_result([row], case=results[0].case, breakdown=True)]
    assert growth_figure(results) is None
    assert attention_crossover(results) == []


def test_overview_has_a_line_for_each_model(make_result, case):
    infer = make_result(
        [
            Row('a', 'a', [0.002], peak=5 * 10**6, params=9 * 10**6),
            Row('b', 'a', [0.003], params=10**7, published=dict(top1=80.0)),
        ],
        deploy=True,
    )
    train = make_result(
        [
            Row('a', 'a', [0.01], saved=3 * 10**6, params=10**7),
            Row('c', error='no'),
        ],
        case=replace(case, mode='train'),
    )
    titles, *lines = overview([infer, train])
    size = '1x3x32x32, fp32, 1 thread'
    assert titles == [
        'model', 'M params', 'top-1', f'infer, {size}, deployed',
        f'infer, {size}, deployed, peak MB',
        f'train, {size}', f'train, {size}, saved MB',
    ]  # fmt: skip
    assert lines == [
        ['a', '10.00', '', '2.0 (1.00)', '5', '10.0 (1.00)', '3'],
        ['b', '10.00', '80.0', '3.0 (1.50)', '', '', ''],
        ['c', '', '', '', '', '', ''],
    ]


def test_overview_has_the_times_of_every_result_of_a_case(make_result, case):
    titles, *lines = overview(
        [
            make_result([Row('a', 'a', [0.001])]),
            make_result([Row('b', 'b', [0.002])]),
            make_result([Row('a', 'a', [0.004])], breakdown=True),
        ]
    )
    assert titles == ['model', *(f'{case} ({i})' for i in (1, 2, 3))]
    assert lines == [
        ['a', '1.0 (1.00)', '', '4.0 (1.00)'],
        ['b', '', '2.0 (1.00)', ''],
    ]


# ----------------------------------------------------------------- terminal

DICT = "dict(type='mmpretrain.VAN', arch='tiny', out_indices=(0, 1, 2, 3))"


@pytest.fixture
def result(make_result):
    """A result with a value in every column."""
    known = dict(
        saved=1234567890, params=12345678, flops=1234567890, graph_breaks=12,
        published=dict(top1=81.0, top1_distilled=81.9, miou=46.0, box_ap=43.6),
        breakdown=dict.fromkeys(BLOCK_KINDS, 0.0123),
        difference=1e-7,
    )  # fmt: skip
    return make_result(
        [
            Row(
                'efficientmod_s', 'efficientmod_s', [0.0123], 1234567, **known
            ),
            Row(DICT, 'official:s_conv', [12.3456], 12345678901, **known),
            Row('official:s_conv', error='no memory'),
        ],
        baselines=['efficientmod_s', 'official:s_conv'],
    )


def printed(columns, values, priority, width):
    """What is printed on a console of a width: titles, body, and below."""
    file = io.StringIO()
    console = Console(file=file, width=width)
    print_table(console, columns, values, priority, 'all are in a file')
    table, _, below = file.getvalue().partition('Columns left out')
    titles, _, body = re.split(r'^(─+)$', table, maxsplit=1, flags=re.M)
    return titles, body, ' '.join(below.split())


@pytest.mark.parametrize('width', [60, 80, 120])
def test_table_fits_the_width_and_breaks_no_word(result, width):
    columns, values = table_columns(result), result_values(result)
    titles, body, below = printed(columns, values, PRIORITY, width)
    assert max(map(len, (titles + body).splitlines())) <= width
    left_out = re.search(r'characters: (.*); all are in a file$', below)[1]
    shown = [c for c in columns if c.title not in left_out.split(', ')]
    assert len(shown) + len(left_out.split(', ')) == len(columns)
    keys = sorted((c.key for c in columns), key=PRIORITY.index)
    assert {c.key for c in shown} == {*keys[: len(shown)]}
    assert {'model', 'median_ms', 'ratio'} <= {c.key for c in shown}
    words = [word for column in shown for word in column.title.split()]
    assert sorted(titles.split()) == sorted(words)
    cells = [cell for row in table_cells(shown, values)[1:] for cell in row]
    assert sorted(body.split()) == sorted(' '.join(cells).split())


def test_wide_table_has_every_column_on_one_line_a_model(result):
    columns, values = table_columns(result), result_values(result)
    _, body, below = printed(columns, values, PRIORITY, 300)
    assert below == ''
    cells = table_cells(columns, values)[1:]
    lines = [line.split() for line in body.strip().splitlines()]
    assert lines == [' '.join(row).split() for row in cells]


@pytest.fixture
def no_terminal(capfd, monkeypatch):
    """Neither of the standard streams is a terminal, also with ``-s``."""
    monkeypatch.delenv('COLUMNS', raising=False)
    kept = os.dup(0)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    yield capfd
    os.dup2(kept, 0)
    os.close(kept)


def test_output_to_no_terminal_is_80_characters_wide(no_terminal):
    row = dict.fromkeys((c.key for c in COLUMNS), 1) | dict(model='some')
    print_table(Console(), COLUMNS[:-1], [row], PRIORITY, 'all are in a file')
    shown = no_terminal.readouterr().out
    assert 60 < max(map(len, shown.splitlines())) <= 80
    assert 'Columns left out to fit in 80 characters: ' in shown


def test_every_column_has_a_priority():
    errors = {'error'}  # below the table, in lines of their own
    assert {*PRIORITY} == {column.key for column in COLUMNS} - errors
    assert {*training_report.PRIORITY} == {
        column.key for column in training_report.TABLE_COLUMNS
    }
