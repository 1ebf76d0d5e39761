"""A trained model as a file that runs without PyTorch, and is checked."""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmefficientmod.apis.class_names import (
    Classes,
    count_classes,
    find_classes,
)
from mmefficientmod.apis.inference import read_trained, toolbox_of
from mmefficientmod.atomic import atomic_write
from mmefficientmod.checkpoint.loading import load_whole
from mmefficientmod.compat import installed_stack
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import build_model, input_size
from mmefficientmod.deploy.checking import Difference, compare
from mmefficientmod.deploy.coreml_files import write_coreml
from mmefficientmod.deploy.files import (
    NCNN,
    ONNX,
    OPENVINO,
    description,
    open_file,
)
from mmefficientmod.deploy.graph import ExportGraph, RawImages
from mmefficientmod.deploy.images import (
    as_batch,
    drawn_images,
    find_images,
    read_images,
)
from mmefficientmod.deploy.layouts import best_layout, lay_out
from mmefficientmod.deploy.ncnn_files import write_ncnn
from mmefficientmod.deploy.onnx_files import (
    describe,
    halve,
    name_sizes,
    write_onnx,
)
from mmefficientmod.deploy.openvino_files import write_openvino
from mmefficientmod.deploy.rewriting import fix_random_bases
from mmefficientmod.deploy.segmentor import LOGITS
from mmefficientmod.deploy.tasks import build_graph
from mmefficientmod.models.layers.deploy import switch_to_deploy
from mmefficientmod.models.normalisation import ImageNormalisation
from mmefficientmod.version import __version__

# Runs a file on images; see ExportedFile.run.
Run = Callable[[np.ndarray], dict[str, np.ndarray]]
DYNAMIC = 'dynamic'
LICENCE = 'Apache-2.0'
# Largest difference from PyTorch, relative to the largest value.
TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-2
# The check of a detector varies its images by rounding, so often, if objects
# differ.
ROUNDING, VARIATIONS = 1e-6, 4
# Index of the size that is recorded where the size may differ.
RECORDED = 3
# The suffix of the file for each kind of target.
TARGETS = {
    'onnx': ONNX,
    'openvino': OPENVINO,
    'ncnn': NCNN,
    'coreml': '.mlpackage',
}
# Targets for phones: images of one size, normalised, and no detectors.
PHONES = ('ncnn', 'coreml')


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how.

    Attributes:
        to: A key of :data:`TARGETS`.
        part: ``'model'`` or ``'backbone'``.
        size: Height and width in pixels; None where they may differ from run
            to run.
        batch: Number of images; None where it may differ.
        output: Of a segmentor, ``'logits'`` or ``'labels'``.
        layout: Memory layout of EfficientMod in the file, one of
            :data:`~mmefficientmod.deploy.layouts.LAYOUTS`. Default: the best
            one for the target.
        preprocess: Whether the file takes raw RGB images and normalises them
            itself.
        images: A folder of images for the check; None for those of the
            config.
        half: Whether weights are stored as float16.
        tolerance: Largest difference from PyTorch, relative to the largest
            value. Default: 1e-4, with ``half`` 2e-2.
    """

    to: str = 'onnx'
    part: str = 'model'
    size: tuple[int, int] | None = None
    batch: int | None = 1
    output: str = LOGITS
    layout: str | None = None
    preprocess: bool = False
    images: str | None = None
    half: bool = False
    tolerance: float | None = None

    @property
    def chosen_layout(self) -> str:
        """The layout, or its default."""
        if self.layout is not None:
            return self.layout
        return best_layout(self.to, self.size)

    @property
    def allowed(self) -> float:
        """The tolerance, or its default."""
        if self.tolerance is not None:
            return self.tolerance
        return HALF_TOLERANCE if self.half else TOLERANCE


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
        divisor: What height and width must be multiples of.
        checks: The comparisons with PyTorch.
    """

    files: list[Path]
    inputs: str
    outputs: list[str]
    images: str
    divisor: int = 1
    checks: list[Check] = field(default_factory=list)


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
    scope = toolbox_of(cfg)
    model, classes, digest = _load(cfg, checkpoint)
    plain = build_graph(model, scope, options.part, options.output)
    _check_target(plain, options)
    deployed = copy.deepcopy(model)
    switch_to_deploy(deployed)
    deployed = lay_out(deployed, options.chosen_layout)
    graph = build_graph(deployed, scope, options.part, options.output)
    normalisation = ImageNormalisation.of(
        model.get_submodule('data_preprocessor')
    )
    paths = find_images(cfg, options.images, 8)
    images = read_images(paths) or drawn_images(8)
    divisor = find_divisor(plain) if options.size is None else 1
    shapes = check_shapes(cfg, options, divisor)
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
            size_divisor=divisor,
            batch=options.batch or DYNAMIC,
            model=type(model).__name__,
            backbone=_backbone_name(model),
            layout=options.chosen_layout,
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
        divisor,
    )
    with tempfile.TemporaryDirectory() as folder:
        files = _write(
            exported, example, graph, Path(folder), metadata, options
        )
        if options.to == 'coreml':
            # CoreML runs on macOS alone. What it was converted from runs.
            run: Run = partial(_run_module, exported, list(graph.outputs))
            result.images += ', before the conversion for CoreML'
        else:
            run = open_file(files[-1]).run
        for check in check_file(
            run, plain, normalisation, images, shapes, options
        ):
            result.checks.append(check)
        for file in files:
            target = Path(out).with_suffix(file.suffix)
            if file.is_dir():
                _replace_folder(file, target)
            else:
                with atomic_write(target) as final:
                    shutil.copyfile(file, final)
            result.files.append(target)
    return result


def _write(
    exported: nn.Module,
    example: Tensor,
    graph: ExportGraph,
    folder: Path,
    metadata: Mapping[str, str],
    options: ExportOptions,
) -> list[Path]:
    """The files for the target; the last one is the one to run."""
    if options.to == 'ncnn':
        path = folder / f'model{NCNN}'
        return write_ncnn(exported, example, path, metadata, options.half)
    if options.to == 'coreml':
        path = folder / f'model{TARGETS["coreml"]}'
        names = list(graph.outputs)
        write_coreml(exported, example, path, names, metadata, options.half)
        return [path]
    draft = folder / f'model{ONNX}'
    write_onnx(
        exported,
        example,
        draft,
        graph.outputs,
        batch=options.batch is None,
        size=options.size is None,
    )
    if options.to == 'openvino':
        path = draft.with_suffix(OPENVINO)
        return write_openvino(draft, path, metadata, options.half)
    if options.size is None or options.batch is None:
        name_sizes(draft)
    if options.half:
        halve(draft)
    describe(draft, metadata)
    return [draft]


def _run_module(
    module: nn.Module, names: Sequence[str], image: np.ndarray
) -> dict[str, np.ndarray]:
    with torch.no_grad():
        values = module(torch.from_numpy(image))
    return {
        name: value.numpy() for name, value in zip(names, values, strict=True)
    }


def _replace_folder(source: Path, target: Path) -> None:
    """Copy a folder, in the place of what is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix='.draft-', dir=target.parent))
    try:
        shutil.copytree(source, draft / source.name)
        shutil.rmtree(target, ignore_errors=True)
        (draft / source.name).rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_file(
    run: Run,
    graph: ExportGraph,
    normalisation: ImageNormalisation,
    images: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, int, int]],
    options: ExportOptions,
) -> Iterator[Check]:
    """Compare a file with PyTorch.

    Args:
        run: Runs the file on images, and returns its outputs by name.
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
    raw = RawImages(graph, normalisation)
    for shape in shapes:
        batch = as_batch(images, *shape)
        image = raw.normalise(torch.from_numpy(batch))
        expected = _reference(graph, image)
        found = run(batch if options.preprocess else image.numpy())
        difference = compare(found, expected)
        if not difference.within(options.allowed) and graph.task == 'det':
            variations = (
                image * (1 + ROUNDING * torch.randn_like(image))
                for _ in range(VARIATIONS)
            )
            others = [_reference(graph, x) for x in variations]
            difference = compare(found, expected, others)
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


def _reference(graph: ExportGraph, image: Tensor) -> dict[str, np.ndarray]:
    """What the toolbox computes, by name."""
    with torch.no_grad():
        values = graph.reference(image)
    return {
        name: value.numpy()
        for name, value in zip(graph.outputs, values, strict=True)
    }


def find_divisor(graph: ExportGraph) -> int:
    """What height and width must be multiples of: 1, or 32.

    Some models cannot add the levels of other sizes, and their configs pad
    the images before the model gets them.
    """
    image = torch.zeros(1, 3, 65, 101)
    try:
        _reference(graph, image)
    except RuntimeError:
        return 32
    return 1


def check_shapes(
    cfg: Config, options: ExportOptions, divisor: int = 1
) -> list[tuple[int, int, int]]:
    """Number, height and width of the images of each comparison.

    Where the size may differ, there are three other sizes, of any divisor;
    where the number may differ, another number.

    Args:
        cfg: The config of the model.
        options: What is exported.
        divisor: Heights and widths of other sizes are multiples of it.
            Default: 1.
    """
    height, width = options.size or input_size(cfg)
    batch = options.batch or 1
    shapes = [(batch, height, width)]
    if options.size is None:
        sizes = (
            (height * 3 // 4 + 1, width // 2 + 3),
            (height // 2 + 5, width),
            (height + 37, width + 18),
        )
        shapes += [
            (batch, -(-h // divisor) * divisor, -(-w // divisor) * divisor)
            for h, w in sizes
        ]
    if options.batch is None:
        shapes.append((3, *shapes[-1][1:]))
    return shapes


def _load(cfg: Config, checkpoint: str) -> tuple[nn.Module, Classes, str]:
    """The model with its weights, its classes and the file's SHA-256."""
    weights, meta = read_trained(cfg, checkpoint)
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


def _check_target(graph: ExportGraph, options: ExportOptions) -> None:
    """Refuse what a target does not take."""
    if not graph.batched and options.batch != 1:
        raise ConfigError(
            'the file of a detector takes one image at a time, since images '
            'have different numbers of objects: leave out --batch'
        )
    if options.to not in PHONES:
        return
    if graph.task == 'det':
        raise ConfigError(
            f'--to {options.to} is for classifiers, segmentors and backbones '
            '(--part backbone): the number of objects of a detector differs '
            'from image to image'
        )
    if options.preprocess:
        raise ConfigError(
            f'--to {options.to} takes normalised images, so --preprocess '
            'does not fit'
        )
    if options.size is None or options.batch != 1:
        raise ConfigError(
            f'--to {options.to} takes one image of one size: give it by '
            '--size, and leave out --batch'
        )


def _backbone_name(model: nn.Module) -> str:
    backbone: Any = getattr(model, 'backbone', model)
    return type(backbone).__name__


def _versions() -> dict[str, str]:
    return dict(mmefficientmod=__version__, **installed_stack()[1])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
