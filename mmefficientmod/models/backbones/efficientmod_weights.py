"""The names of EfficientMod's weights: ours, the authors', and of branches."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from mmefficientmod.models.layers.reparam import kinds_of

# The authors' names. Their downsampling ends a stage, ours begins the next.
OFFICIAL_NAMES: tuple[tuple[str, Any], ...] = (
    (r'^patch_embed\.', 'stem.'),
    (
        r'^layers\.(\d+)\.downsample\.',
        lambda m: f'stages.{int(m[1]) + 1}.downsample.',
    ),
    (r'^layers\.(\d+)\.', r'stages.\1.'),
    (r'\.gamma_1$', '.gamma'),
    (r'\.context_layer\.context_list\.0\.', '.context.conv.'),
    (r'\.context_layer\.', '.context.'),
)
# What stands in the names of branches between block and branch.
BRANCHES = '.context.branches.'


def rename_official_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the authors' names to ours, one to one.

    Names that are ours already, or nobody's, stay as they are.
    """
    renamed = {}
    for key, value in weights.items():
        name = key
        for pattern, replacement in OFFICIAL_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def reparam_of(names: Iterable[str]) -> tuple[int | str, ...]:
    """The ``reparam`` of a model, from the names of its tensors."""
    found = {k.partition(BRANCHES)[2].partition('.')[0] for k in names}
    return kinds_of(found - {''})


def _branches_differ(given: set[str], own: set[str]) -> str:
    kinds = reparam_of(given)
    if not own:
        return (
            f'the weights have parallel branches, reparam={kinds}, and the '
            'model has none: merge them by tools/convert_checkpoint.py FILE '
            f'NEW_FILE --deploy, or build the model with reparam={kinds}'
        )
    if kinds != reparam_of(own):
        return (
            f'the weights have the parallel branches reparam={kinds}, and the '
            f'model has reparam={reparam_of(own)}: build it with the former, '
            'or merge the branches of the weights by '
            'tools/convert_checkpoint.py FILE NEW_FILE --deploy and have '
            'others start from zero'
        )
    missing, unknown = sorted(own - given), sorted(given - own)
    return (
        'the weights have a part of the parallel branches: of the '
        f'{len(own)} tensors, {len(missing)} are missing'
        + (f', such as {missing[0]}' if missing else '')
        + (f'; the model has no {unknown[0]}' if unknown else '')
    )
