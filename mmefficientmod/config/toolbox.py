"""The toolbox of a config: its import, its models and their input size."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from torch import nn

from mmefficientmod.config.files import TOOLBOXES
from mmefficientmod.config.nodes import ConfigError, dataset_dicts

# Beginnings of lines that a toolbox prints on import and that say nothing to
# a user.
NOISY_LINES = ('Could not import OneDL',)
# Height and width at which papers, and MMDetection's own tool before version
# 3, count FLOPs of detectors whose images are scaled to at most 1333 x 800.
COCO_SIZE = (800, 1280)


def toolbox_of(cfg: Config) -> str:
    """The toolbox that a config belongs to.

    A pure-Python config may have no ``default_scope``; then it is that of the
    class of its model.

    Raises:
        ConfigError: If it is none of those that can predict.
    """
    scope = cfg.get('default_scope')
    kind = (cfg.get('model') or {}).get('type')
    if not scope and kind is not None:
        name = kind if isinstance(kind, str) else kind.__module__
        scope = name.partition('.')[0]
    if scope not in TOOLBOXES:
        raise ConfigError(
            f'only configs of {", ".join(TOOLBOXES)} can predict, and this '
            f'one has default_scope={cfg.get("default_scope")!r}'
        )
    return scope


def import_toolbox(scope: str) -> None:
    """Import the models and data sets of a toolbox.

    Args:
        scope: Name of the toolbox, as in ``default_scope``.

    Raises:
        ConfigError: If it is not installed.
    """
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for part in ('datasets', 'models'):
            try:
                importlib.import_module(f'{scope}.{part}')
            except ModuleNotFoundError as error:
                if error.name == scope:
                    raise ConfigError(
                        f'the config needs {scope}, which is not installed'
                    ) from None
                # A config without a scope has that of mmengine, which has
                # neither `datasets` nor `models`.
                if error.name != f'{scope}.{part}':
                    raise
    for line in printed.getvalue().splitlines():
        if not line.startswith(NOISY_LINES):
            sys.stdout.write(f'{line}\n')


@contextmanager
def default_scope(cfg: Config) -> Iterator[None]:
    """Inside the block, find types without a prefix in a config's toolbox."""
    name = cfg.get('default_scope') or 'mmengine'
    with DefaultScope.overwrite_default_scope(name):
        yield


def build_model(cfg: Config) -> nn.Module:
    """Build the model of a config with random weights, on the CPU.

    Its toolbox stays the default scope of the process afterwards.

    Raises:
        ConfigError: If the config has no model, or its toolbox is not
            installed.
    """
    if not cfg.get('model'):
        raise ConfigError(f'{cfg.filename} has no model')
    scope = cfg.get('default_scope') or 'mmengine'
    import_toolbox(scope)
    init_default_scope(scope)
    return MODELS.build(model_dict(cfg))


def model_dict(cfg: Config) -> ConfigDict:
    """The model of a config, with the data preprocessor that is beside it.

    MMPretrain's configs have it there, and MMEngine's runner takes it.
    """
    node = ConfigDict(cfg.get('model') or {})
    if cfg.get('data_preprocessor'):
        node.setdefault('data_preprocessor', cfg.data_preprocessor)
    return node


def input_size(cfg: Config) -> tuple[int, int]:
    """Height and width, in pixels, at which FLOPs of a config are counted.

    - Segmentation: the crop of the training.
    - Classification: the last crop or size in the test pipeline.
    - Detection: the scale of the test pipeline; 800 x 1280 for 1333 x 800, as
      in papers.

    The size is rounded up to a multiple of ``pad_size_divisor`` of the data
    preprocessor.

    Raises:
        ConfigError: If the config does not have such a size.
    """
    scope = cfg.get('default_scope')
    preprocessor = cfg.model.get('data_preprocessor') or {}
    size = None
    if scope == 'mmseg':
        size = cfg.get('crop_size') or preprocessor.get('size')
    else:
        dataset: Any = next(dataset_dicts(cfg, 'test_dataloader'), {})
        for step in dataset.get('pipeline') or []:
            if step.get('crop_size'):
                size = step['crop_size']
            elif step.get('scale') and (scope != 'mmdet' or size is None):
                # A pair is (width, height), or longest and shortest side.
                scale = step['scale']
                size = scale if isinstance(scale, int) else (*scale,)[::-1]
        if scope == 'mmdet' and size == (800, 1333):
            size = COCO_SIZE
    if isinstance(size, int):
        size = (size, size)
    if size is None or len(size) != 2:
        raise ConfigError(
            f'{cfg.filename} does not say what size its images have; give '
            '--shape HEIGHT WIDTH'
        )
    divisor = preprocessor.get('pad_size_divisor') or 1
    height, width = (-(-int(x) // divisor) * divisor for x in size)
    return height, width
