"""A toolbox imported, its models built, the size of its images."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from torch import nn

from mmefficientmod.config.nodes import ConfigError, dataset_dicts

NOISY_LINES = ('Could not import OneDL',)


def import_toolbox(scope: str) -> None:
    """Import a toolbox without the lines that mean nothing to a user.

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
                if error.name != f'{scope}.{part}':
                    raise
    for line in printed.getvalue().splitlines():
        if not line.startswith(NOISY_LINES):
            sys.stdout.write(f'{line}\n')


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, with fresh weights and on the CPU.

    Raises:
        ConfigError: If there is none, or its toolbox is not installed.
    """
    if not cfg.get('model'):
        raise ConfigError(f'{cfg.filename} has no model')
    scope = cfg.get('default_scope') or 'mmengine'
    import_toolbox(scope)
    init_default_scope(scope)
    return MODELS.build(cfg.model)


# What papers, and MMDetection's own tool before version 3, take where images
# are scaled to at most 1333 x 800; height and width.
COCO_SIZE = (800, 1280)


def input_size(cfg: Config) -> tuple[int, int]:
    """Height and width at which a config's complexity is quoted.

    Segmentation: the crop that it trains on. Classification: what the test
    pipeline crops or resizes to at last. Detection: 800 x 1280 where the test
    pipeline scales to 1333 x 800, as papers do, and what it scales to
    otherwise. Rounded up to what the data preprocessor pads to.

    Raises:
        ConfigError: If the config does not say it.
    """
    scope = cfg.get('default_scope')
    preprocessor = cfg.model.get('data_preprocessor') or {}
    size = None
    if scope == 'mmseg':
        size = cfg.get('crop_size') or preprocessor.get('size')
    else:
        dataset = next(dataset_dicts(cfg, 'test_dataloader'), {})
        for step in dataset.get('pipeline') or []:
            if step.get('crop_size'):
                size = step['crop_size']
            elif step.get('scale') and (scope != 'mmdet' or size is None):
                # (width, height), or the long and the short side.
                scale = step['scale']
                size = scale if isinstance(scale, int) else scale[::-1]
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


@contextmanager
def default_scope(cfg: Config) -> Iterator[None]:
    name = cfg.get('default_scope') or 'mmengine'
    with DefaultScope.overwrite_default_scope(name):
        yield
