"""Finding and reading config files: ours, stock ones and the user's."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE, ConfigParsingError

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.options import apply_options
from mmefficientmod.messages import did_you_mean

# Toolboxes whose configs the tools serve.
TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')


def register_config_packages() -> None:
    """Let ``mmefficientmod::`` and ``mmseg::`` name configs in MMEngine.

    MMEngine asks for the distribution ``mmsegmentation``, which the onedl
    fork of MMSegmentation is not; told the module's name, it finds it.
    """
    MODULE2PACKAGE['mmefficientmod'] = 'mmefficientmod'
    try:
        metadata.version('mmsegmentation')
    except metadata.PackageNotFoundError:
        MODULE2PACKAGE['mmseg'] = 'mmseg'


def find_config(name: str) -> Path:
    """Path of a config.

    Args:
        name: A path, or ``package::path`` for a config that an installed
            package carries, for example
            ``mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py``.

    Raises:
        ConfigError: If there is none, with the names that come close.
    """
    package, colons, inner = name.partition('::')
    if not colons:
        path = Path(name)
        folder = path.parent
        remedy = f'in {folder}'
    else:
        if package not in (*TOOLBOXES, 'mmefficientmod'):
            raise ConfigError(
                f'no package {package!r} has configs to take; give a path, '
                f'or one of {", ".join(TOOLBOXES)} and mmefficientmod '
                'before the `::`'
            )
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ConfigError(
                f'config {name} needs {package}, which is not installed'
            )
        folder = Path(spec.origin).parent / '.mim' / 'configs'
        path = (folder / inner).with_suffix('.py')
        remedy = f'in the configs of {package}'
    if path.is_file():
        return path
    found = folder.rglob('*.py') if colons else folder.glob('*.py')
    known = [str(p.relative_to(folder)) for p in found]
    wanted = str(path.relative_to(folder))
    form = f'{package}::{{}}' if colons else str(folder / '{}')
    hint = did_you_mean(wanted, known, most=3, cutoff=0.7, form=form)
    raise ConfigError(f'config {name} does not exist' + (hint or f' {remedy}'))


def load_config(name: str, options: Mapping[str, Any] | None = None) -> Config:
    """Load a config and put options of the command line in.

    Args:
        name: As for :func:`find_config`.
        options: As for :func:`apply_options`.

    Raises:
        ConfigError: If the config does not exist or an option does not fit.
    """
    path = find_config(name)
    try:
        cfg = Config.fromfile(path)
    except (
        OSError,
        SyntaxError,
        ImportError,
        ConfigParsingError,
        RuntimeError,
    ) as error:
        cause = error.__cause__ or error.__context__
        raise ConfigError(
            f'config {name} cannot be read: {error}'
            + (f' ({cause})' if cause else '')
        ) from error
    apply_options(cfg, options or {})
    return cfg
