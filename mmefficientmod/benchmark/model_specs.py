"""What can be measured: names of models, and the models behind them.

A backbone is one dict, whoever wrote it; alone it is built, within a config it
is swapped in. A config is a whole model.
"""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import nn

from mmefficientmod.benchmark.official import (
    OfficialEfficientMod,
    import_official,
    official_arch,
    share_weights,
)
from mmefficientmod.benchmark.sources import (
    _own_code,
    config_text,
    import_file,
    short_hash,
    source_hash,
)
from mmefficientmod.config.files import find_config, load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import build_model, import_toolbox
from mmefficientmod.swap.backbone import swap_backbone
from mmefficientmod.swap.names import BACKBONES, parse_dict, resolve_backbone
from mmefficientmod.swap.probe import class_of

# Whole models into which a backbone goes by a short name, and what they are
# run on by default: batch, height, width.
WITHIN = {
    'fpn': (
        'mmefficientmod::seg/fpn_efficientmod_s_ade20k.py',
        (2, 512, 512),
    ),
    'mask_rcnn': (
        'mmefficientmod::det/mask_rcnn_efficientmod_s_fpn_1x_coco.py',
        (1, 800, 1333),
    ),
}
# A class of a user's file, with arguments if it wants some.
FILE_CLASS = re.compile(
    r'(?P<path>.+\.py):(?P<name>\w+)(?P<arguments>\(.*\))?'
)


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be built.

    Attributes:
        name: What tables call it.
        backbone: Dict of a backbone; None where a config is the model.
        config: A config that is the model, or that the backbone goes into;
            None for a backbone alone.
        published_name: What its published results are found by: the backbone's
            name in :data:`~mmefficientmod.zoo.BACKBONES`, or that of the
            config; None for others.
        source: Hash of the file that defines it, so that a result is known
            to be of this code.
    """

    name: str
    backbone: Mapping[str, Any] | None
    config: str | None
    published_name: str | None
    source: str

    @property
    def whole(self) -> bool:
        """Whether it is more than a backbone."""
        return self.config is not None

    def build(self) -> nn.Module:
        """Build it with fresh weights, the same in each call.

        Every EfficientMod has weights that depend on its variant alone, see
        :func:`share_weights`, and what is around a backbone does not depend
        on it.

        Raises:
            ConfigError: If the backbone does not go into the config.
        """
        torch.manual_seed(0)
        if self.config is None:
            model = MODELS.build(dict(self.backbone))
            share_weights(model)
            return model
        cfg = load_config(self.config)
        import_toolbox(cfg.get('default_scope') or 'mmengine')
        if self.backbone is not None:
            cfg = swap_backbone(cfg, self.backbone)
        model = build_model(cfg)
        torch.manual_seed(0)
        for name, part in model.named_children():
            if name == 'backbone':
                share_weights(part)
                continue
            for module in part.modules():
                if hasattr(module, 'reset_parameters'):
                    module.reset_parameters()
        return model


def find_model_specs(
    specs: Sequence[str], within: str | None = None
) -> list[ModelSpec]:
    """The candidates of a command line.

    Args:
        specs: Names of models; see :func:`parse_model_spec`. With a ``*``, all
            of :data:`~mmefficientmod.zoo.BACKBONES` that it fits.
        within: A key of :data:`WITHIN` or a config, for backbones to go
            into. Default: they stay alone.

    Raises:
        ConfigError: If a name is nobody's, or stands twice.
    """
    config = WITHIN[within][0] if within in WITHIN else within
    if config:
        find_config(config)
    candidates = [
        parse_model_spec(name, config)
        for spec in specs
        for name in expand(spec)
    ]
    names = [candidate.name for candidate in candidates]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'the model {name} is named twice')
    return candidates


def expand(spec: str) -> list[str]:
    """The names that a pattern fits, or the text itself.

    Raises:
        ConfigError: If it fits none.
    """
    if not re.fullmatch(r'[\w*]*\*[\w*]*', spec):
        return [spec]
    names = fnmatch.filter(BACKBONES, spec)
    if not names:
        raise ConfigError(
            f'{spec} fits none of the names {", ".join(BACKBONES)}'
        )
    return names


def parse_model_spec(spec: str, within: str | None = None) -> ModelSpec:
    """What a name means.

    Args:
        spec: A name of :data:`~mmefficientmod.zoo.BACKBONES`;
            ``timm:NAME``; ``official:PATH:NAME`` for the authors' file and a
            variant; ``FILE.py:CLASS`` or ``FILE.py:CLASS(key=value)``; the
            dict of a registered backbone; or a config.
        within: A config for a backbone to go into.

    Raises:
        ConfigError: If it is nobody's name.
    """
    spec = spec.strip()
    name, published_name = spec, None
    if spec.startswith('official:'):
        path, _, variant = spec.removeprefix('official:').rpartition(':')
        arch = official_arch(variant)
        backbone = dict(type=OfficialEfficientMod, path=path, arch=arch)
        name = f'official:{arch}'
        published_name = f'efficientmod_{arch}'
        import_official(path)
    elif match := FILE_CLASS.fullmatch(spec):
        backbone = dict(
            type=_class_in(match['path'], match['name']),
            **parse_dict(f'dict{match["arguments"] or "()"}'),
        )
        name = Path(match['path']).name + spec[len(match['path']) :]
    elif '::' in spec or spec.endswith('.py'):
        path = find_config(spec)
        if within:
            raise ConfigError(
                f'{spec} is a whole model, into which no --within fits'
            )
        source = short_hash(config_text(spec) + _own_code())
        return ModelSpec(path.stem, None, spec, path.stem, source)
    else:
        backbone = resolve_backbone(spec)
        class_of(backbone)
        if spec.replace('-', '_') in BACKBONES:
            name = published_name = spec.replace('-', '_')
    source = source_hash(backbone, within)
    return ModelSpec(name, backbone, within, published_name, source)


def _class_in(path: str, name: str) -> type[nn.Module]:
    """A module class of a user's file."""
    module = import_file(path)
    found = getattr(module, name, None)
    if not inspect.isclass(found) or not issubclass(found, nn.Module):
        classes = [
            key
            for key, value in vars(module).items()
            if inspect.isclass(value)
            and issubclass(value, nn.Module)
            and value.__module__ == module.__name__
        ]
        raise ConfigError(
            f'{path} has no module class {name}; it has '
            f'{", ".join(classes) or "none at all"}'
        )
    return found
