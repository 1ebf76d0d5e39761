"""A trained model as a file that runs without PyTorch, and is checked."""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from mmefficientmod.apis.calibrating import prepare_images
from mmefficientmod.apis.class_names import (
    Classes,
    count_classes,
    dataset_meta,
    find_classes,
)
from mmefficientmod.apis.export_options import DYNAMIC, ExportOptions
from mmefficientmod.apis.exporting_int8 import (
    CHECKED,
    Sample,
    check_noise,
    grouped,
    quantise,
    report,
)
from mmefficientmod.apis.inference import toolbox_of
from mmefficientmod.atomic import atomic_write
from mmefficientmod.checkpoint.loading import load_whole
from mmefficientmod.checkpoint.reading import read_checkpoint, select_weights
from mmefficientmod.compat import installed_stack
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import build_model, input_size
from mmefficientmod.datasets.folders import has_class_folders, set_num_classes
from mmefficientmod.deploy.checking import Difference, compare
from mmefficientmod.deploy.files import (
    ONNX,
    OPENVINO,
    description,
    open_file,
)
from mmefficientmod.deploy.graph import (
    ExportGraph,
    RawImages,
    WithLevels,
    keep_levels,
    level_outputs,
)
from mmefficientmod.deploy.images import (
    as_batch,
    drawn_images,
    find_images,
    read_images,
    spread_images,
)
from mmefficientmod.deploy.int8 import CALIBRATION_IMAGES, check_int8
from mmefficientmod.deploy.layouts import lay_out
from mmefficientmod.deploy.noise import Noise
from mmefficientmod.deploy.onnx_files import describe, halve, write_onnx
from mmefficientmod.deploy.openvino_files import convert_onnx, write_openvino
from mmefficientmod.deploy.report import Int8Report
from mmefficientmod.deploy.rewriting import fix_random_bases
from mmefficientmod.deploy.tasks import build_graph, count_levels
from mmefficientmod.models.layers.deploy import switch_to_deploy
from mmefficientmod.models.normalisation import ImageNormalisation
from mmefficientmod.version import __version__

LICENCE = 'Apache-2.0'
# Index of the size that is recorded where the size may differ.
RECORDED = 3


@dataclass(frozen=True)
class Check:
    """A comparison of the file with PyTorch.

    Attributes:
        shape: Images, height and width.
        difference: What differs.
    """

    shape: tuple[int, int, int]
    difference: Difference


@dataclass
class Export:
    """What was exported.

    Attributes:
        files: The files that were written, the one to run last.
        inputs: Shape and type of the input, in words.
        outputs: Names of the outputs.
        images: What the check ran on, in words.
        checks: The comparisons with PyTorch.
        noise: The difference of a file in 8 bits from PyTorch; ``checks`` are
            those of its float32 form.
        noise_images: What it was measured on, in words.
        report: What is slow and what is noisy, if that was asked for.
    """

    files: list[Path]
    inputs: str
    outputs: list[str]
    images: str
    checks: list[Check] = field(default_factory=list)
    noise: Noise | None = None
    noise_images: str = ''
    report: Int8Report | None = None


def export_model(
    cfg: Config, checkpoint: str, out: str, options: ExportOptions
) -> Export:
    """Export the model of a config with the weights of a checkpoint.

    The file is written after it was compared with PyTorch; if it differs,
    none is written.

    Args:
        cfg: The config.
        checkpoint: Path or URL of a checkpoint of the whole model.
        out: The file to write.
        options: What is exported, and how.

    Raises:
        CheckpointError: If the checkpoint cannot be read or is of another
            model.
        ConfigError: If the model cannot be exported, or the file differs from
            PyTorch by more than the tolerance.
        DataError: If an image for the check cannot be read.
    """
    if options.calibrate is not None:
        check_int8()
    scope = toolbox_of(cfg)
    model, classes, digest = _load(cfg, checkpoint, scope)
    plain = build_graph(model, scope, options.part, options.output)
    _check_batch(plain, options)
    deployed = copy.deepcopy(model)
    switch_to_deploy(deployed)
    deployed = lay_out(deployed, options.chosen_layout)
    levels: list[torch.Tensor] = []
    level_names: dict[str, dict[int, str]] = {}
    backbone = getattr(model, 'backbone', None)
    if options.report and options.part == 'model' and backbone is not None:
        level_names = level_outputs(count_levels(backbone))
        levels = keep_levels(deployed.get_submodule('backbone'))
    graph = build_graph(deployed, scope, options.part, options.output)
    normalisation = ImageNormalisation.of(
        model.get_submodule('data_preprocessor')
    )
    paths = find_images(cfg, options.images, 8)
    images = read_images(paths) or drawn_images(8)
    shapes = check_shapes(cfg, options)
    raw = RawImages(graph, normalisation)
    # Of any size, the last one is recorded: no stride divides it, so that
    # paddings and what is cut off after them are recorded as well.
    recorded = shapes[0] if options.size else shapes[RECORDED]
    example = torch.from_numpy(as_batch(images, *recorded))
    if options.preprocess:
        exported: nn.Module = raw
    else:
        exported, example = graph, raw.normalise(example)
    inputs = 'uint8 RGB (N, H, W, 3)'
    if not options.preprocess:
        order = 'RGB' if normalisation.rgb else 'BGR'
        inputs = f'float32 {order} (N, 3, H, W), normalised'
    metadata = description(
        dict(
            task=graph.task,
            outputs=list(graph.outputs),
            several_labels=getattr(graph, 'several', False),
            classes=list(classes.names),
            palette=[list(c) for c in classes.palette],
            input=inputs,
            mean=list(normalisation.mean),
            std=list(normalisation.std),
            channel_order='rgb' if normalisation.rgb else 'bgr',
            preprocess=options.preprocess,
            size=options.size or DYNAMIC,
            batch=options.batch or DYNAMIC,
            model=type(model).__name__,
            backbone=_backbone_name(model),
            layout=options.chosen_layout,
            precision=options.precision,
            config=cfg.filename,
            config_sha256=_digest(cfg.pretty_text.encode()),
            checkpoint=Path(checkpoint).name,
            checkpoint_sha256=digest,
            versions=_versions(),
            licence=LICENCE,
        )
    )
    result = Export(
        [],
        inputs,
        list(graph.outputs),
        f'{len(paths)} images of {paths[0].parent}'
        if paths
        else 'drawn pictures',
    )
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder, f'model{ONNX}')
        write_onnx(
            WithLevels(exported, levels) if level_names else exported,
            example,
            draft,
            {**graph.outputs, **level_names},
            batch=options.batch is None,
            size=options.size is None,
        )
        files = [draft]
        if options.calibrate is None:
            files = _convert(draft, metadata, options)
        for check in check_file(
            files[-1], plain, normalisation, images, shapes, options
        ):
            result.checks.append(check)
        if options.calibrate is not None:
            files = _quantise(
                draft,
                _Samples(cfg, scope, model, options),
                plain,
                list(level_names),
                metadata,
                options,
                result,
            )
        for file in files:
            target = Path(out).with_suffix(file.suffix)
            with atomic_write(target) as final:
                shutil.copyfile(file, final)
            result.files.append(target)
    return result


def _convert(
    draft: Path, metadata: Mapping[str, str], options: ExportOptions
) -> list[Path]:
    """The files for the target, beside the ONNX file that they are made of.

    The last one is the one to run.
    """
    if options.to == 'openvino':
        path = draft.with_suffix(OPENVINO)
        model = convert_onnx(draft)
        return write_openvino(model, path, metadata, options.half)
    if options.half:
        halve(draft)
    describe(draft, metadata)
    return [draft]


@dataclass(frozen=True)
class _Samples:
    """Reads images as the test of a config prepares them."""

    cfg: Config
    scope: str
    model: Any
    options: ExportOptions

    def read(self, folder: str, number: int) -> list[Sample]:
        """At most so many images of a folder."""
        preprocessor = self.model.data_preprocessor
        options = self.options
        images = prepare_images(
            self.cfg,
            self.scope,
            preprocessor,
            spread_images(folder, number),
            options.size,
        )
        return grouped(images, options.preprocess, options.batch or 1)


def _quantise(
    source: Path,
    images: _Samples,
    graph: ExportGraph,
    levels: Sequence[str],
    metadata: Mapping[str, str],
    options: ExportOptions,
    result: Export,
) -> list[Path]:
    """The files in 8 bits; their check and report are put in the result."""
    folder = str(options.calibrate)
    samples = images.read(folder, CALIBRATION_IMAGES)
    draft = quantise(source, options.to, samples, metadata, levels)
    # From all parts of the folder.
    checked = samples[:: -(-len(samples) // CHECKED)]
    if options.images is not None:
        folder = options.images
        checked = images.read(folder, CHECKED)
    result.noise = check_noise(draft.files[-1], graph, checked)
    number = sum(len(sample.normalised) for sample in checked)
    result.noise_images = f'{number} images of {folder}'
    if options.report:
        result.report = report(
            draft,
            result.noise,
            getattr(images.model, 'backbone', None),
            checked,
        )
    return draft.files


def check_file(
    path: Path,
    graph: ExportGraph,
    normalisation: ImageNormalisation,
    images: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, int, int]],
    options: ExportOptions,
) -> Iterator[Check]:
    """Compare a file with PyTorch.

    Args:
        path: The file.
        graph: The graph of the model as it was trained.
        normalisation: How its images are normalised.
        images: Each ``(H, W, 3)`` uint8 RGB.
        shapes: Number, height and width of the images of each comparison.
        options: What was exported, and how.

    Yields:
        The comparisons that are within the tolerance.

    Raises:
        ConfigError: If one is not.
    """
    file = open_file(path)
    raw = RawImages(graph, normalisation)
    for shape in shapes:
        batch = as_batch(images, *shape)
        image = raw.normalise(torch.from_numpy(batch))
        with torch.no_grad():
            values = graph.reference(image)
        expected = {
            name: value.numpy()
            for name, value in zip(graph.outputs, values, strict=True)
        }
        found = file.run(batch if options.preprocess else image.numpy())
        difference = compare(found, expected)
        if not difference.within(options.allowed):
            number, height, width = shape
            remedy = (
                f'; export it for one size, such as --size {height}x{width}'
                if shape != shapes[0] and options.size is None
                else ''
            )
            raise ConfigError(
                f'the file differs from PyTorch for {number} images of '
                f'{height}x{width} pixels ({difference.text}), more than '
                f'--tolerance {options.allowed:g}, so it is not written'
                f'{remedy}'
            )
        yield Check(shape, difference)


def check_shapes(
    cfg: Config, options: ExportOptions
) -> list[tuple[int, int, int]]:
    """Number, height and width of the images of each comparison.

    Where the size may differ, there are three other sizes, of any divisor;
    where the number may differ, another number.

    Args:
        cfg: The config of the model.
        options: What is exported.
    """
    height, width = options.size or input_size(cfg)
    batch = options.batch or 1
    shapes = [(batch, height, width)]
    if options.size is None:
        shapes += [
            (batch, height * 3 // 4 + 1, width // 2 + 3),
            (batch, height // 2 + 5, width),
            (batch, height + 37, width + 18),
        ]
    if options.batch is None:
        shapes.append((3, *shapes[-1][1:]))
    return shapes


def _load(
    cfg: Config, checkpoint: str, scope: str
) -> tuple[nn.Module, Classes, str]:
    """The model with its weights, its classes and the file's SHA-256."""
    content = read_checkpoint(checkpoint)
    weights, _ = select_weights(content, checkpoint)
    meta = dataset_meta(content)
    if scope == 'mmpretrain' and has_class_folders(cfg):
        names = meta.get('classes')
        if isinstance(names, Sequence) and names:
            set_num_classes(cfg, len(names))
    model = build_model(cfg)
    load_whole(model, weights, checkpoint)
    # A statement of its own: train() of some backbones returns None.
    model.eval()
    fix_random_bases(model)
    classes = find_classes(cfg, meta, count_classes(model))
    digest = ''
    if Path(checkpoint).is_file():
        digest = _digest(Path(checkpoint).read_bytes())
    return model, classes, digest


def _check_batch(graph: ExportGraph, options: ExportOptions) -> None:
    if not graph.batched and options.batch != 1:
        raise ConfigError(
            'the file of a detector takes one image at a time, since images '
            'have different numbers of objects: leave out --batch'
        )


def _backbone_name(model: nn.Module) -> str:
    backbone: Any = getattr(model, 'backbone', model)
    return type(backbone).__name__


def _versions() -> dict[str, str]:
    return dict(mmefficientmod=__version__, **installed_stack()[1])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
