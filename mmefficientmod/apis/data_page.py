"""A page about data sets: one HTML file without other files."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np

from mmefficientmod.apis.data_check import DataReport, Offender

SIDE = 200  # longest side of a picture, in pixels
MOST_PICTURES = 60
RED = (0, 0, 255)  # BGR
STYLE = """
body { font-family: sans-serif; max-width: 70em; margin: 2em auto; }
table { border-collapse: collapse; }
td, th { padding: .2em .8em; text-align: left; }
.bar { background: #47a; height: .8em; }
figure { display: inline-block; width: 15em; vertical-align: top; }
figcaption { font-size: .8em; overflow-wrap: anywhere; }
.error { color: #a00; }
"""


def write_page(path: Path, reports: Sequence[DataReport], title: str) -> None:
    """Write the page.

    Args:
        path: The HTML file; its folder is made.
        reports: What was found.
        title: Heading of the page.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(_page(reports, title)), encoding='utf-8')


def _page(reports: Sequence[DataReport], title: str) -> Iterable[str]:
    heading = html.escape(title)
    yield '<!DOCTYPE html><html lang="en"><meta charset="utf-8">'
    yield f'<title>{heading}</title><style>{STYLE}</style><h1>{heading}</h1>'
    for report in reports:
        yield f'<h2>{html.escape(report.loader)}</h2>'
        yield f'<p>{len(report.sizes)} images {size_range(report)}</p>'
        for sentences, name in (
            (report.findings.errors, 'error'),
            (report.findings.warnings, 'warning'),
        ):
            for sentence in sentences:
                yield (
                    f'<p class="{name}">{name}: {html.escape(sentence)}</p>'
                )
        yield from _histogram(report)
        shown = report.offenders[:MOST_PICTURES]
        if shown:
            yield (
                f'<h3>{len(shown)} of {len(report.offenders)} pictures with '
                'something wrong</h3>'
            )
            yield from map(_figure, shown)
    yield '</html>'


def size_range(report: DataReport) -> str:
    """The sizes of the images, as words: ``of 64x48 to 640x480 pixels``."""
    if not report.sizes:
        return ''
    ordered = sorted(report.sizes, key=lambda size: size[0] * size[1])
    first, last = ('x'.join(map(str, ordered[i])) for i in (0, -1))
    middle = 'x'.join(map(str, ordered[len(ordered) // 2]))
    if first == last:
        return f'of {first} pixels'
    return f'of {first} to {last} pixels, median {middle}'


def _histogram(report: DataReport) -> Iterable[str]:
    if not report.counts:
        return
    most = max(*report.counts.values(), 1)
    yield f'<table><tr><th>class<th>{report.kind}<th></tr>'
    for name, count in report.counts.items():
        width = 30 * count / most
        yield (
            f'<tr><td>{html.escape(name)}<td>{count}<td>'
            f'<div class="bar" style="width:{width:.2f}em"></div></tr>'
        )
    yield '</table>'


def _figure(offender: Offender) -> str:
    picture = _picture(offender)
    image = ''
    if picture is not None:
        _, data = cv2.imencode('.jpg', picture)
        text = base64.b64encode(data.tobytes()).decode()
        image = f'<img alt="" src="data:image/jpeg;base64,{text}">'
    caption = html.escape(f'{offender.image}: {offender.reason}')
    return f'<figure>{image}<figcaption>{caption}</figcaption></figure>'


def _picture(offender: Offender) -> np.ndarray | None:
    """A small picture ``(H, W, 3)`` in BGR, with the box of the object."""
    try:
        image = cv2.imread(offender.image)
    except cv2.error:
        return None
    if image is None:
        return None
    scale = min(1.0, SIDE / max(image.shape[:2]))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if offender.box:
        x, y, width, height = (round(scale * v) for v in offender.box)
        cv2.rectangle(small, (x, y), (x + width, y + height), RED, 2)
    return small
