"""An exported file in 8 bits: its calibration, check and report."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.files import OPENVINO, open_file
from mmefficientmod.deploy.graph import ExportGraph, named_arrays
from mmefficientmod.deploy.int8 import quantize_onnx, quantize_openvino
from mmefficientmod.deploy.noise import (
    LEAST_EQUAL,
    LEAST_SQNR,
    Noise,
    measure_noise,
)
from mmefficientmod.deploy.onnx_files import describe, drop_outputs
from mmefficientmod.deploy.openvino_files import convert_onnx, write_openvino
from mmefficientmod.deploy.report import (
    Int8Report,
    noise_onnx,
    noise_openvino,
    time_onnx,
    time_openvino,
)

# Images of the check, which are some of those of the calibration.
CHECKED = 8


@dataclass(frozen=True)
class Sample:
    """An image, as the test of the config prepares it.

    Attributes:
        given: What the file takes, ``(N, ...)``.
        normalised: What the model takes, ``(N, 3, H, W)``, float32.
    """

    given: np.ndarray
    normalised: np.ndarray


@dataclass
class Int8Draft:
    """Files in 8 bits before their check.

    Attributes:
        files: The files, the one to run last.
        measured: The same as the last one, with the levels of the backbone
            as further outputs if they are reported.
        source: The ONNX file in float32 that they are made of.
    """

    files: list[Path]
    measured: Path
    source: Path
    levels: Sequence[str] = field(default_factory=tuple)


def quantise(
    source: Path,
    target: str,
    samples: Sequence[Sample],
    metadata: Mapping[str, str],
    levels: Sequence[str] = (),
) -> Int8Draft:
    """Quantise an ONNX file, and convert it for a target.

    Args:
        source: The file, in float32.
        target: ``'onnx'`` or ``'openvino'``.
        samples: Images, to measure activations on.
        metadata: The description, text by name.
        levels: Outputs of the source that the final file does not have.

    Raises:
        ConfigError: If the library is not installed or fails.
    """
    images = [sample.given for sample in samples]
    if target == 'openvino':
        path = source.with_name(f'int8{OPENVINO}')
        measured = source.with_name(f'levels{OPENVINO}')
        model = quantize_openvino(convert_onnx(source), images)
        write_openvino(model, measured, {})
        for result in model.results:
            if result.output(0).names & {*levels}:
                model.remove_result(result)
        files = write_openvino(model, path, metadata)
        return Int8Draft(files, measured, source, levels)
    path = source.with_name('int8.onnx')
    measured = source.with_name('levels.onnx')
    quantize_onnx(source, measured, images)
    drop_outputs(measured, path, levels)
    describe(path, metadata)
    return Int8Draft([path], measured, source, levels)


def check_noise(
    path: Path, graph: ExportGraph, samples: Iterable[Sample]
) -> Noise:
    """Compare a file in 8 bits with PyTorch.

    Args:
        path: The file.
        graph: The graph of the model as it was trained.
        samples: The images.

    Raises:
        ConfigError: If the noise is above the bounds.
    """
    file = open_file(path)
    noise = measure_noise(
        (
            file.run(x.given),
            named_arrays(graph.reference, graph.outputs, x.normalised),
        )
        for x in samples
    )
    if not noise.is_low:
        raise ConfigError(
            f'the file in int8 differs too much from PyTorch ({noise.text}; '
            f'at least {LEAST_SQNR:g} dB, and {LEAST_EQUAL:.0%} of labels '
            'or objects, are needed), so it is not written; calibrate it on '
            'images like those of the training, or leave out --int8'
        )
    return noise


def report(
    draft: Int8Draft,
    noise: Noise,
    backbone: Any,
    samples: Sequence[Sample],
) -> Int8Report:
    """What is slow and what is noisy in a file in 8 bits.

    Args:
        draft: The files.
        noise: That of the outputs.
        backbone: The backbone as it was trained; None if it has no levels.
        samples: The images; the layers are timed on the first.
    """
    file = open_file(draft.measured)
    ratios: dict[str, float] = {}
    if draft.levels:
        ratios = measure_noise(
            (
                file.run(x.given),
                named_arrays(backbone, draft.levels, x.normalised),
            )
            for x in samples
        ).ratios
    path, image = draft.files[-1], samples[0].given
    if path.suffix == OPENVINO:
        slowest = time_openvino(path, image)
        worst = noise_openvino(convert_onnx(draft.source), path, image)
    else:
        slowest = time_onnx(path, image)
        worst = noise_onnx(draft.source, path, image)
    return Int8Report({**ratios, **noise.ratios}, slowest, worst)


def grouped(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], raw: bool, batch: int
) -> list[Sample]:
    """Images for a file that takes several at once.

    Images of one size are put together; of several sizes, each is repeated.

    Args:
        pairs: Raw and normalised images.
        raw: Whether the file takes raw images.
        batch: Number of images that it takes.
    """
    found = list(pairs)
    samples = []
    if len({image.shape for image, _ in found}) == 1:
        source = itertools.cycle(found)
        groups = [
            [next(source) for _ in range(batch)]
            for _ in range(-(-len(found) // batch))
        ]
    else:
        groups = [[pair] * batch for pair in found]
    for group in groups:
        images, normalised = (
            np.concatenate(x) for x in zip(*group, strict=True)
        )
        samples.append(Sample(images if raw else normalised, normalised))
    return samples
