"""Finding and loading configs: ours, stock ones and the user's."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import logging
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE, ConfigParsingError
from mmengine.logging import print_log
from mmengine.runner import Runner

# Toolboxes whose configs the tools serve.
TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')
# What MMEngine reads of a config besides the arguments of its Runner.
EXTRA_KEYS = (
    'compile', 'custom_imports', 'find_unused_parameters',
    'model_wrapper_cfg', 'runner_type', 'strategy', 'sync_bn',
)  # fmt: skip


class ConfigError(ValueError):
    """A config cannot be found or an option does not fit it."""


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
    known = {str(p.relative_to(folder)): p for p in found}
    wanted = str(path.relative_to(folder))
    close = difflib.get_close_matches(wanted, known, n=3, cutoff=0.7)
    if colons:
        close = [f'{package}::{c}' for c in close]
    else:
        close = [str(folder / c) for c in close]
    raise ConfigError(
        f'config {name} does not exist'
        + (f'; did you mean {" or ".join(close)}?' if close else f' {remedy}')
    )


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


def apply_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Put options of the command line into a config.

    Three things that a stock config repeats in many places may be given once:
    a top-level ``data_root`` or ``crop_size`` replaces its old value wherever
    that stands, ``scale`` is put into every pipeline that resizes to a scale
    of two sides, and a new ``train_cfg.max_iters`` or ``max_epochs`` scales
    the part of the learning-rate schedule that counts the same, unless the
    options set that too. With ``optim_wrapper.accumulative_counts``, what
    follows the steps of the optimizer goes on to do so: see
    :func:`follow_accumulation`.

    Args:
        cfg: The config, changed in place.
        options: Dotted keys and their new values.

    Raises:
        ConfigError: If a key does not fit.
    """
    options = dict(options)
    if 'scale' in options and 'scale' not in cfg:
        _set_scale(cfg, options.pop('scale'))
    _check_keys(cfg, options)
    for key in ('data_root', 'crop_size'):
        if key in options and cfg.get(key):
            replace_everywhere(cfg, cfg[key], _like(cfg[key], options[key]))
    length, by_epoch = _length(cfg)
    if by_epoch and length and options.get('train_cfg.max_iters'):
        count_iterations(cfg, options['train_cfg.max_iters'])
        length, by_epoch = _length(cfg)
    accumulated = accumulation(cfg)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AssertionError) as error:
        raise ConfigError(f'--cfg-options does not fit: {error}') from None
    new_length, new_by_epoch = _length(cfg)
    if (
        length
        and new_length != length
        and new_by_epoch == by_epoch
        and not any(key.startswith('param_scheduler') for key in options)
    ):
        factor = new_length / length
        if by_epoch:
            scale_schedule(cfg, epochs=factor)
        else:
            scale_schedule(cfg, iters=factor)
    if accumulation(cfg) != accumulated:
        follow_accumulation(cfg, accumulation(cfg) / accumulated, options)


def follow_accumulation(
    cfg: Config, factor: float, options: Mapping[str, Any]
) -> None:
    """Have what goes with the steps of the optimizer follow accumulation.

    MMEngine counts iterations, of which a step now takes ``factor`` times as
    many. An average of the weights is updated once a step. In a training that
    counts epochs, a warm-up that counts iterations takes as many steps as
    before. In one that counts iterations, their number stays; a warning says
    so where the options do not set it.

    Args:
        cfg: The config, changed in place.
        factor: New iterations a step, by the old ones.
        options: Those of the command line; what they set is left alone.
    """

    def is_set(key: str) -> bool:
        return any(option.startswith(key) for option in options)

    for hook in cfg.get('custom_hooks') or []:
        if kind_of(hook) == 'EMAHook' and not is_set('custom_hooks'):
            interval = hook.get('interval', 1) * factor
            hook['interval'] = max(1, round(interval))
    length, by_epoch = _length(cfg)
    if by_epoch and not is_set('param_scheduler'):
        scale_schedule(cfg, iters=factor)
    elif length and not by_epoch and not is_set('train_cfg.max_iters'):
        print_log(
            f'{length} iterations are {length // accumulation(cfg)} steps of '
            'the optimizer, since gradients are accumulated; '
            f'train_cfg.max_iters={round(length * factor)} has as many steps '
            'as before',
            logger='current',
            level=logging.WARNING,
        )


def replace_everywhere(cfg: Any, old: Any, new: Any) -> Any:
    """Replace a value, or the beginning of a path, in a whole config.

    Args:
        cfg: Config, dict, list or value; containers are changed in place.
        old: What to look for; a string is also found as a folder at the
            beginning of a path.
        new: What to put there.

    Returns:
        The value with the replacement made.
    """
    if isinstance(cfg, (Mapping, Config)):
        for key in list(cfg):
            cfg[key] = replace_everywhere(cfg[key], old, new)
    elif isinstance(old, str) and isinstance(cfg, str):
        if cfg.rstrip('/') == old.rstrip('/'):
            return new
        if cfg.startswith(old.rstrip('/') + '/'):
            return new.rstrip('/') + cfg[len(old.rstrip('/')) :]
    elif isinstance(cfg, (list, tuple)):
        if isinstance(old, (list, tuple)) and list(cfg) == list(old):
            return new
        return type(cfg)(replace_everywhere(v, old, new) for v in cfg)
    return cfg


def kind_of(node: Any) -> str:
    """Name of a node's type, given as text or class, without a scope."""
    kind = node.get('type') if isinstance(node, Mapping) else None
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.split('.')[-1]


def walk(node: Any) -> Iterator[ConfigDict]:
    """All dicts in a node, the outer ones first."""
    if isinstance(node, Mapping):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from walk(value)


def scale_schedule(
    cfg: Config, epochs: float = 1.0, iters: float = 1.0
) -> None:
    """Stretch or shrink the learning-rate schedule.

    A part of it keeps at least two steps: in MMEngine, a warm-up of one step
    would stay at its start for ever.

    Args:
        cfg: The config, changed in place.
        epochs: Factor for what counts epochs.
        iters: Factor for what counts iterations.
    """
    schedulers = cfg.get('param_scheduler') or []
    if isinstance(schedulers, Mapping):
        schedulers = [schedulers]
    ends: dict[tuple[bool, int], int] = {}
    for scheduler in schedulers:
        by_epoch = scheduler.get('by_epoch', True)
        factor = epochs if by_epoch else iters
        if factor == 1:
            continue
        begin, end = scheduler.get('begin'), scheduler.get('end')
        for key in ('begin', 'T_max', 'step_size', 'total_steps'):
            if scheduler.get(key):
                scheduler[key] = max(1, round(scheduler[key] * factor))
        # One that follows another begins where that now ends.
        if (by_epoch, begin) in ends:
            scheduler['begin'] = ends[by_epoch, begin]
        if end:
            least = scheduler.get('begin', 0) + 2
            scheduler['end'] = max(least, round(end * factor))
            ends[by_epoch, end] = scheduler['end']
        if 'milestones' in scheduler:
            scheduler['milestones'] = [
                max(1, round(m * factor)) for m in scheduler['milestones']
            ]


def count_iterations(cfg: Config, max_iters: int) -> None:
    """Make a config count iterations where it counts epochs.

    The learning rate falls at the same shares of the training. Validation
    and checkpoint come at the end.

    Args:
        cfg: The config, changed in place.
        max_iters: Length of the training.
    """
    scale_schedule(cfg, epochs=max_iters / cfg.train_cfg.max_epochs)
    schedulers = cfg.get('param_scheduler') or []
    if isinstance(schedulers, Mapping):
        schedulers = [schedulers]
    for scheduler in schedulers:
        scheduler['by_epoch'] = False
        scheduler.pop('convert_to_iter_based', None)
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop',
        max_iters=max_iters,
        val_interval=max_iters,
    )
    hooks = cfg.setdefault('default_hooks', {})
    hooks.setdefault('checkpoint', dict(type='CheckpointHook')).update(
        by_epoch=False, interval=max_iters
    )
    hooks.setdefault('logger', dict(type='LoggerHook'))[
        'log_metric_by_epoch'
    ] = False
    cfg.setdefault('log_processor', dict(type='LogProcessor'))['by_epoch'] = (
        False
    )


def walk_pipelines(cfg: Config) -> Iterator[Any]:
    """Every dict in the data loaders and pipelines of a config, once."""
    parts = [
        value
        for key, value in cfg.items()
        if key.endswith(('_dataloader', '_pipeline'))
    ]
    # A pipeline may stand in several loaders as one object.
    yield from {id(node): node for node in walk(parts)}.values()


def is_pair(value: Any) -> bool:
    """Whether a value is a list or tuple of two."""
    return isinstance(value, (list, tuple)) and len(value) == 2


def _set_scale(cfg: Config, scale: Any) -> None:
    if not is_pair(scale):
        raise ConfigError(
            f'--cfg-options scale={scale} must be two sides, such as '
            'scale=1333,800'
        )
    steps = [x for x in walk_pipelines(cfg) if is_pair(x.get('scale'))]
    if not steps:
        raise ConfigError(
            '--cfg-options scale: no step of the pipelines has a scale of '
            'two sides'
        )
    for step in steps:
        step['scale'] = tuple(scale)


def _length(cfg: Config) -> tuple[int, bool]:
    train_cfg = cfg.get('train_cfg') or {}
    if train_cfg.get('max_iters'):
        return train_cfg['max_iters'], False
    return train_cfg.get('max_epochs') or 0, True


def accumulation(cfg: Config) -> int:
    """Iterations for each step of the optimizer.

    Raises:
        ConfigError: If it is no such number.
    """
    counts = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if not isinstance(counts, int) or counts < 1:
        raise ConfigError(
            f'optim_wrapper.accumulative_counts={counts} is no number of '
            'iterations for each step of the optimizer, 1 or more'
        )
    return counts


def _like(old: Any, new: Any) -> Any:
    """A side given for a size that is a pair means both sides.

    Two, which options make a list of, are what the pair was.
    """
    if isinstance(old, (list, tuple)):
        if isinstance(new, int):
            new = [new] * len(old)
        if isinstance(new, (list, tuple)):
            return type(old)(new)
    return new


def _check_keys(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse a top-level key that nothing reads, which would do nothing."""
    known = {*cfg, *inspect.signature(Runner).parameters, *EXTRA_KEYS}
    for option in options:
        top = option.split('.')[0]
        if top in known:
            continue
        close = difflib.get_close_matches(top, known, n=1)
        hint = f'; did you mean {close[0]}?' if close else ''
        raise ConfigError(
            f'--cfg-options {option}: the config has no {top!r}{hint}'
        )
