"""Choosing the stages of the new backbone that a config reads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from mmengine.config import ConfigDict

from mmefficientmod.config.nodes import ConfigError, type_name, walk
from mmefficientmod.swap.log import log_change
from mmefficientmod.swap.probe import Levels, option_of, parameters_of, probe

# Backbone and decoder in one. The strides of their outputs do not show this.
WHOLE_NETWORKS = ('CGNet', 'DDRNet', 'ERFNet', 'ICNet', 'PIDNet')


def strides_to_give(model: ConfigDict, old: Levels) -> tuple[int, ...]:
    """The strides at which the new backbone must give features.

    Args:
        model: The model with its old backbone.
        old: Levels of the old backbone.

    Returns:
        The strides of the old backbone if they are those of a pyramid; 4, 8,
        16 and 32 in place of a dilated backbone's.

    Raises:
        ConfigError: If neck and heads need other strides.
    """
    kind, strides = type_name(model.backbone), old.strides
    if strides == (16,):
        raise ConfigError(
            f'{kind} gives one level at stride 16 (a C4 or DC5 model, or a '
            'plain vision transformer), and the heads need a last stage '
            'without stride; take the FPN variant of the config'
        )
    if kind in WHOLE_NETWORKS:
        raise _whole_network(kind, strides)
    rising = all(a < b for a, b in zip(strides, strides[1:], strict=False))
    if rising and set(strides) <= {4, 8, 16, 32}:
        return strides
    if (
        len(strides) == 4
        and strides[:2] == (4, 8)
        and list(strides) == sorted(strides)
    ):
        return _undilated(model, strides)
    if rising:
        raise ConfigError(
            f'{kind} gives features at strides {_join(strides)}, and neck or '
            'heads read them all; start from a config that reads only '
            'strides 4, 8, 16 and 32'
        )
    if len(set(strides)) == 1 < len(strides):
        raise ConfigError(
            f'{kind} gives stride {strides[0]} {len(strides)} times, as a '
            'plain vision transformer or an hourglass does, and the heads '
            'need that; take a config whose backbone has a pyramid'
        )
    raise _whole_network(kind, strides)


def _undilated(model: ConfigDict, strides: Sequence[int]) -> tuple[int, ...]:
    """The strides of a pyramid, where the old backbone is dilated."""
    kind = type_name(model.backbone)
    if any(type_name(node) == 'OCRHead' for node in walk(model)):
        raise ConfigError(
            'OCRHead multiplies two levels pixel by pixel: a dilated '
            f'{kind} gives them at one stride, and a pyramid does not; take '
            'an OCRNet config with HRNet, which resizes its levels to one size'
        )
    log_change(
        f'{kind} was dilated and gave strides {_join(strides)}; the heads '
        'now see 4, 8, 16 and 32, coarser than they were made for',
        logging.WARNING,
    )
    return 4, 8, 16, 32


def _whole_network(kind: str, strides: Sequence[int]) -> ConfigError:
    return ConfigError(
        f'{kind} gives strides {_join(strides)}: backbone and decoder are one '
        'network here, and there is no backbone to replace'
    )


def choose_levels(new: ConfigDict, strides: tuple[int, ...]) -> Levels:
    """Set ``out_indices`` of the new backbone so that it gives the strides.

    Args:
        new: The dict of the new backbone, changed in place.
        strides: The strides, in pixels.

    Returns:
        The levels that it gives then.

    Raises:
        ConfigError: If it does not have these strides.
    """
    levels = probe(new)
    if levels.strides == strides:
        return levels
    indices = option_of(new, 'out_indices')
    if (
        isinstance(indices, Sequence)
        and len(indices) == len(levels.strides)
        and set(strides) <= set(levels.strides)
    ):
        new.out_indices = tuple(
            indices[levels.strides.index(stride)] for stride in strides
        )
        return probe(new)
    raise ConfigError(
        f'the config reads strides {_join(strides)}, and {type_name(new)} '
        f'gives {_join(levels.strides)}'
        + (
            '; choose its stages by out_indices=(...) in its dict'
            if 'out_indices' in parameters_of(new)
            else ''
        )
    )


def choose_last_level(new: ConfigDict) -> Levels:
    """Make the new backbone give its last stage, after the final norm.

    A classifier reads no other stage. If others were returned too, their
    norms would get no gradient.

    Args:
        new: The dict of the new backbone, changed in place.

    Returns:
        The level that it gives then.

    Raises:
        ConfigError: If it gives no feature maps.
    """
    # MMPretrain's ConvNeXt and similar backbones would pool the features.
    defaults = dict(final_norm=True, gap_before_final_norm=False)
    for key, value in defaults.items():
        if key in parameters_of(new):
            new.setdefault(key, value)
    indices = option_of(new, 'out_indices')
    if isinstance(indices, Sequence):
        new.out_indices = (indices[-1],)
    return probe(new)


def _join(values: Iterable[int]) -> str:
    return ', '.join(map(str, values))
