"""A trained model as a file that runs without PyTorch, and is checked."""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmefficientmod.apis.calibrating import prepare_images
from mmefficientmod.apis.class_names import (
    Classes,
    count_classes,
    find_classes,
)
from mmefficientmod.apis.export_options import (
    DYNAMIC,
    PHONES,
    TARGETS,
    ExportOptions,
)
from mmefficientmod.apis.exporting_check import (
    Check,
    Run,
    check_file,
    check_shapes,
    find_divisor,
)
from mmefficientmod.apis.exporting_int8 import (
    CHECKED,
    Sample,
    check_noise,
    grouped,
    quantise,
    report,
)
from mmefficientmod.apis.inference import read_trained
from mmefficientmod.atomic import atomic_write, replace_folder
from mmefficientmod.checkpoint.loading import load_whole
from mmefficientmod.compat import installed_stack
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import build_model, toolbox_of
from mmefficientmod.deploy.coreml_files import write_coreml
from mmefficientmod.deploy.files import (
    NCNN,
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
    named_arrays,
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
from mmefficientmod.deploy.ncnn_files import write_ncnn
from mmefficientmod.deploy.noise import Noise
from mmefficientmod.deploy.onnx_files import (
    describe,
    halve,
    name_sizes,
    write_onnx,
)
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
        noise: The difference of a file in 8 bits from PyTorch; ``checks`` are
            those of its float32 form.
        noise_images: What it was measured on, in words.
        report: What is slow and what is noisy, if that was asked for.
    """

    files: list[Path]
    inputs: str
    outputs: list[str]
    images: str
    divisor: int = 1
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
    model, classes, digest = _load(cfg, checkpoint)
    plain = build_graph(model, scope, options.part, options.output)
    _check_target(plain, options)
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
        divisor,
    )
    with tempfile.TemporaryDirectory() as folder:
        files = _write(
            WithLevels(exported, levels) if level_names else exported,
            example,
            {**graph.outputs, **level_names},
            Path(folder),
            metadata,
            options,
        )
        if options.to == 'coreml':
            # CoreML runs on macOS alone. What it was converted from runs.
            run: Run = partial(named_arrays, exported, list(graph.outputs))
            result.images += ', before the conversion for CoreML'
        else:
            run = open_file(files[-1]).run
        result.checks.extend(
            check_file(run, plain, normalisation, images, shapes, options)
        )
        if options.calibrate is not None:
            files = _quantise(
                files[-1],
                _Samples(cfg, scope, model, options),
                plain,
                list(level_names),
                metadata,
                options,
                result,
            )
        for file in files:
            target = Path(out).with_suffix(file.suffix)
            if file.is_dir():
                replace_folder(file, target)
            else:
                with atomic_write(target) as final:
                    shutil.copyfile(file, final)
            result.files.append(target)
    return result


def _write(
    exported: nn.Module,
    example: Tensor,
    outputs: Mapping[str, Mapping[int, str]],
    folder: Path,
    metadata: Mapping[str, str],
    options: ExportOptions,
) -> list[Path]:
    """The files for the target; the last one is the one to run.

    For int8 the file is the float32 form that is quantised.
    """
    if options.to == 'ncnn':
        path = folder / f'model{NCNN}'
        return write_ncnn(exported, example, path, metadata, options.half)
    if options.to == 'coreml':
        path = folder / f'model{TARGETS["coreml"]}'
        names = list(outputs)
        write_coreml(exported, example, path, names, metadata, options.half)
        return [path]
    draft = folder / f'model{ONNX}'
    write_onnx(
        exported,
        example,
        draft,
        outputs,
        batch=options.batch is None,
        size=options.size is None,
    )
    if options.calibrate is not None:
        return [draft]
    if options.to == 'openvino':
        path = draft.with_suffix(OPENVINO)
        model = convert_onnx(draft)
        return write_openvino(model, path, metadata, options.half)
    if options.size is None or options.batch is None:
        name_sizes(draft)
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
    if options.calibrate is not None:
        raise ConfigError(
            f'--int8 is for ONNX Runtime and OpenVINO, not for {options.to}'
        )
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
