"""Finding and reading config files of ours, of a toolbox, or of a user."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE

from mmefficientmod.config.failures import explain_failure
from mmefficientmod.config.nodes import ConfigError, walk
from mmefficientmod.config.options import apply_options
from mmefficientmod.messages import did_you_mean

# Toolboxes whose configs the tools can run.
TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')


def register_config_packages() -> None:
    """Make MMEngine find configs named ``mmefficientmod::`` and ``mmseg::``.

    For ``mmseg::``, MMEngine looks for a distribution called
    ``mmsegmentation``. The onedl fork has another name, and is found by the
    name of its module.
    """
    MODULE2PACKAGE['mmefficientmod'] = 'mmefficientmod'
    try:
        metadata.version('mmsegmentation')
    except metadata.PackageNotFoundError:
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def find_config(name: str) -> Path:
    """Path of a config file.

    Args:
        name: A path, or ``package::path`` for a config in an installed
            package, such as
            ``mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py``.

    Raises:
        ConfigError: If it does not exist; the message has the closest names.
    """
    package, colons, inner = name.partition('::')
    if not colons:
        path = Path(name)
        folder = path.parent
    else:
        if package not in (*TOOLBOXES, 'mmefficientmod'):
            raise ConfigError(
                f'no package {package!r} has configs; give a path, or one of '
                f'{", ".join(TOOLBOXES)} and mmefficientmod before the `::`'
            )
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ConfigError(
                f'config {name} needs {package}, which is not installed'
            )
        folder = Path(spec.origin).parent / '.mim' / 'configs'
        # Not `folder / inner`, which an inner path with a slash in front
        # would replace.
        path = Path(f'{folder}/{inner.removesuffix(".py")}.py')
    if path.is_file():
        return path
    found = folder.rglob('*.py') if colons else folder.glob('*.py')
    known = [str(p.relative_to(folder)) for p in found]
    wanted = str(path.relative_to(folder))
    form = f'{package}::{{}}' if colons else str(folder / '{}')
    hint = did_you_mean(wanted, known, most=3, cutoff=0.7, form=form)
    raise ConfigError(f'config {name} does not exist{hint}')


def load_config(name: str, options: Mapping[str, Any] | None = None) -> Config:
    """Load a config and apply options of the command line.

    Args:
        name: See :func:`find_config`.
        options: See :func:`~mmefficientmod.config.options.apply_options`.
            Default: none.

    Raises:
        ConfigError: If the config does not exist or cannot be read, or an
            option does not fit.
    """
    path = find_config(name)
    try:
        cfg = Config.fromfile(path)
        # A pure-Python config imports the classes that it names when it is
        # walked.
        for _ in walk(list(cfg.items())):
            pass
    except (Exception, SystemExit) as error:  # a config may raise any
        raise ConfigError(
            f'config {name} cannot be read: {explain_failure(error, path)}'
        ) from error
    if not cfg:
        raise ConfigError(f'config {name} is empty')
    apply_options(cfg, options or {})
    return cfg
