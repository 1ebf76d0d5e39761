"""EfficientMod's weights: their names, loading, merging and folding."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmefficientmod.checkpoint.loading import without_counters
from mmefficientmod.checkpoint.reading import CheckpointError
from mmefficientmod.models.backbones.efficientmod_phone import ConvNorm
from mmefficientmod.models.layers.deploy import (
    Deployable,
    fold_norm,
    fold_scale,
)
from mmefficientmod.models.layers.plain import check_batch_norm, check_plain
from mmefficientmod.models.layers.reparam import (
    ParallelBranches,
    Reparameterisable,
    kinds_of,
)

ModuleT = TypeVar('ModuleT', bound='EfficientModWeights')

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
# Infix of branch parameter names: `<block>.mlp.context.branches.<branch>`.
BRANCHES = '.context.branches.'


def rename_official_keys(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights from the authors' names to ours, one to one.

    Other names, ours included, stay as they are.
    """
    renamed = {}
    for key, value in weights.items():
        name = key
        for pattern, replacement in OFFICIAL_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def reparam_of(names: Iterable[str]) -> tuple[int | str, ...]:
    """The option ``reparam`` of a model, from the names of its tensors."""
    found = {k.partition(BRANCHES)[2].partition('.')[0] for k in names}
    return kinds_of(found - {''})


class EfficientModWeights(Deployable):
    """The part of EfficientMod that handles its weights.

    It gives the modulation blocks their parallel branches, starts these from
    weights of a plain variant, merges them, and folds the model for
    inference.

    Attributes:
        reparam: The branches that the model has; none after they were merged.
    """

    stages: nn.ModuleList
    num_stages: int
    num_built: int
    reparam: tuple[int | str, ...]
    _branch_keys: set[str]

    def _contexts(self) -> list[Reparameterisable]:
        return [m for m in self.modules() if isinstance(m, Reparameterisable)]

    def _add_branches(self, reparam: tuple[int | str, ...]) -> None:
        """Add branches to each modulation block.

        Raises:
            ValueError: If there is no modulation block.
        """
        contexts = self._contexts() if reparam else []
        if reparam and not contexts:
            raise ValueError(
                f'reparam={reparam} is for modulation blocks, whose 7x7 '
                'convolution gets parallel branches, and this arch has none '
                '(phone, MBConv and attention blocks take no branches)'
            )
        for context in contexts:
            context.branches = ParallelBranches(
                context.conv.in_channels, reparam
            )
        self.reparam = reparam
        # Recorded before wrappers such as LoRA rename them.
        self._branch_keys = {k for k in self.state_dict() if BRANCHES in k}

    def _rename_keys(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' weights under our names, with branches if needed."""
        weights = rename_official_keys(weights)
        return weights | self.zero_branches(weights)

    def zero_branches(
        self, weights: Mapping[str, Tensor], prefix: str = ''
    ) -> dict[str, Tensor]:
        """Branch weights that weights of a plain variant lack.

        Args:
            weights: Weights of a plain variant, or of a variant with the same
                branches as this model.
            prefix: Prefix of this model's names in the weights.

        Returns:
            Weights of branches that give zero, as their batch norms have
            weight and bias 0; empty if the weights have branches.

        Raises:
            CheckpointError: If the weights have other branches than the
                model.
        """
        not_built = tuple(
            f'stages.{i}.' for i in range(self.num_built, self.num_stages)
        )
        given = {
            k.removeprefix(prefix)
            for k in without_counters(weights)
            if k.startswith(prefix) and BRANCHES in k
        }
        given = {k for k in given if not k.startswith(not_built)}
        own_keys = set(without_counters(self._branch_keys))
        if given == own_keys:
            return {}
        if given:
            raise CheckpointError(_branches_differ(given, own_keys))
        branches = {}
        own = self.state_dict()
        for key in self._branch_keys:
            block, _, part = key.partition(BRANCHES)
            if f'{prefix}{block}.context.conv.weight' in weights:
                value = own[key]
                if '.norm.' in part:
                    is_variance = part.endswith('running_var')
                    value = torch.full_like(value, int(is_variance))
                branches[prefix + key] = value
        if branches:
            print_log(
                'the weights are those of a plain EfficientMod: its parallel '
                'branches start at zero',
                logger='current',
            )
        return branches

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any
    ) -> None:
        # A folded model refuses training weights itself, see Deployable.
        if not self.deployed:
            state_dict.update(self.zero_branches(state_dict, prefix))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def merge_branches(self: ModuleT) -> ModuleT:
        """Merge the branches of ``reparam`` into the 7x7 convolutions.

        The result is a plain variant, which can be trained further. Its
        outputs in evaluation mode are unchanged.

        Returns:
            The module itself.

        Raises:
            RuntimeError: If a convolution is not plain, or a norm is not a
                plain batch norm. Nothing is changed then.
        """
        contexts = self._contexts()
        for context in contexts:
            if context.branches is not None:
                context.branches.check_mergeable(context.conv)
        for context in contexts:
            context.merge_branches()
        self.reparam, self._branch_keys = (), set()
        return self

    def fold(self) -> None:
        """Fold branches, norms and layer scales into their neighbours.

        The branches of ``reparam`` go into the convolutions beside them, the
        affine parts of LayerNorms into the layers that read them, the batch
        norms of phone blocks into the convolutions before them, and each
        layer scale into the linear layer before it. A final batch norm stays,
        because no convolution precedes it.

        Raises:
            RuntimeError: If one of these layers is not plain, such as a LoRA
                or a quantised layer, or a layer with a hook. Nothing is
                changed then.
        """
        stages: Iterable[Any] = self.stages
        blocks = [block for stage in stages for block in stage.blocks]
        folded = {block: _folded_layers(block) for block in blocks}
        for pairs, scaled in folded.values():
            layers = [x for norm, linears in pairs for x in (norm, *linears)]
            for layer in (*layers, *scaled):
                check_plain(layer, 'switch_to_deploy()')
        convs = [m for m in self.modules() if isinstance(m, ConvNorm)]
        for conv in convs:
            check_plain(conv.proj, 'switch_to_deploy()')
            check_batch_norm(conv.norm, 'switch_to_deploy()')
        self.merge_branches()
        for conv in convs:
            conv.fold_norm()
        for block, (pairs, scaled) in folded.items():
            for norm, linears in pairs:
                fold_norm(norm, *linears)
            for linear in scaled:
                fold_scale(linear, block.gamma)
                block.gamma = None


def _folded_layers(
    block: Any,
) -> tuple[list[tuple[Any, list[Any]]], list[Any]]:
    """Each norm with the layers that read it, and the layers to be scaled."""
    pairs = [
        (block.get_submodule(norm), [block.get_submodule(x) for x in linears])
        for norm, linears in block.layers_after_norm.items()
    ]
    has_scale = getattr(block, 'gamma', None) is not None
    scaled = [block.get_submodule(block.scaled_layer)] if has_scale else []
    return pairs, scaled


def _branches_differ(given: set[str], own: set[str]) -> str:
    """The message where the branches of weights and model differ."""
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
