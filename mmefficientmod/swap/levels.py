"""Which stages of the new backbone give the strides that a config reads."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mmengine.config import ConfigDict

from mmefficientmod.config.nodes import ConfigError, type_name, walk
from mmefficientmod.swap.log import log_change
from mmefficientmod.swap.probe import Levels, option_of, parameters_of, probe

# Backbone and decoder in one, though what comes out could be a pyramid's.
WHOLE_NETWORKS = ('CGNet', 'DDRNet', 'ERFNet', 'ICNet', 'PIDNet')


def strides_to_give(model: ConfigDict, old: Levels) -> tuple[int, ...]:
    """Which strides the new backbone has to give, for the old one's.

    Raises:
        ConfigError: If the old one has no pyramid.
    """
    kind, strides = type_name(model.backbone), old.strides
    whole = kind in WHOLE_NETWORKS
    rising = all(a < b for a, b in zip(strides, strides[1:], strict=False))
    if strides == (16,):
        raise ConfigError(
            f'{kind} gives one level at stride 16 (a C4 or DC5 model, or a '
            'plain vision transformer), whose heads are made for a last stage '
            'without its stride; take the FPN variant of the config'
        )
    if not whole and rising and set(strides) <= {4, 8, 16, 32}:
        return strides
    dilated = (
        len(strides) == 4 and strides[0] == 4 and strides[1] == 8
        and list(strides) == sorted(strides)
    )  # fmt: skip
    if dilated and not whole:
        if any(type_name(node) == 'OCRHead' for node in walk(model)):
            raise ConfigError(
                'OCRHead multiplies two levels pixel by pixel, which a '
                f'dilated {kind} gives at one stride and a pyramid does not; '
                'take an OCRNet config with HRNet, which brings them to one '
                'size'
            )
        log_change(
            f'{kind} was dilated and gave strides {_list(strides)}; the '
            'heads now see 4, 8, 16 and 32, coarser than they were made for',
            logging.WARNING,
        )
        return (4, 8, 16, 32)
    if rising and not whole:
        raise ConfigError(
            f'{kind} gives strides {_list(strides)}, and a head reads each; a '
            'backbone with a pyramid has 4, 8, 16 and 32'
        )
    if len(set(strides)) == 1 < len(strides) and not whole:
        raise ConfigError(
            f'{kind} gives stride {strides[0]} {len(strides)} times, as a '
            'plain vision transformer or an hourglass does, and the heads are '
            'made for that; take a config whose backbone has a pyramid'
        )
    raise ConfigError(
        f'{kind} gives strides {_list(strides)}: backbone and decoder are one '
        'network here, and there is no backbone to replace'
    )


def choose_levels(new: ConfigDict, strides: tuple[int, ...]) -> Levels:
    """Set the new backbone's ``out_indices`` so that it gives these strides.

    Raises:
        ConfigError: If it cannot.
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
        f'the config reads strides {_list(strides)}, and {type_name(new)} '
        f'gives {_list(levels.strides)}'
        + (
            '; name its stages by out_indices=(...) in its dict'
            if 'out_indices' in parameters_of(new)
            else ''
        )
    )


def _list(values: Sequence[int]) -> str:
    return ', '.join(map(str, values))
