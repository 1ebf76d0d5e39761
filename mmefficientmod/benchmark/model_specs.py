"""The models that a command line names, and how each is built.

A backbone is the dict of a registered class or of a class of a user's file.
It is built alone, or swapped into a config. A config by itself is a whole
model.
"""

from __future__ import annotations

import fnmatch
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.registry import MODELS
from torch import nn

from mmefficientmod.benchmark.official import (
    OfficialEfficientMod,
    import_official,
    official_arch,
    set_comparable_weights,
)
from mmefficientmod.benchmark.sources import (
    backbone_hash,
    config_hash,
    import_file,
)
from mmefficientmod.config.files import find_config, load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import build_model, import_toolbox
from mmefficientmod.deploy.layouts import LAYOUTS
from mmefficientmod.rng import forked_rng
from mmefficientmod.swap.backbone import swap_backbone
from mmefficientmod.swap.names import BACKBONES, parse_dict, resolve_backbone
from mmefficientmod.swap.probe import class_of


class Host(NamedTuple):
    """A whole model that backbones are swapped into, by a short name.

    Attributes:
        config: The config of the model.
        input_size: Default batch, height and width.
    """

    config: str
    input_size: tuple[int, int, int]


HOSTS = {
    'fpn': Host(
        'mmefficientmod::seg/fpn_efficientmod_s_ade20k.py', (2, 512, 512)
    ),
    'mask_rcnn': Host(
        'mmefficientmod::det/mask_rcnn_efficientmod_s_fpn_1x_coco.py',
        (1, 800, 1333),
    ),
}
# FILE.py:CLASS or FILE.py:CLASS(key=value, ...)
FILE_CLASS = re.compile(
    r'(?P<path>.+\.py):(?P<name>\w+)(?P<arguments>\(.*\))?'
)


@dataclass(frozen=True)
class ModelSpec:
    """A model that can be built.

    Attributes:
        name: The name in tables and files.
        backbone: Dict of a backbone; None if the config is the model.
        config: The config that is the model, or that the backbone goes into;
            None for a backbone alone.
        published_name: The name by which
            :func:`~mmefficientmod.benchmark.published.published_accuracies`
            knows the model: a key of
            :data:`~mmefficientmod.swap.names.BACKBONES`, or the name of a
            config; None for other models.
        source: Hash of the code that defines the model, kept with results.
        layout: Memory layout of EfficientMod where the model is exported;
            None for the best one.
    """

    name: str
    backbone: Mapping[str, Any] | None
    config: str | None
    published_name: str | None
    source: str
    layout: str | None = None

    @property
    def whole(self) -> bool:
        """Whether it is a whole model, not a backbone alone."""
        return self.config is not None

    def laid_out(self, layout: str) -> ModelSpec:
        """The same model, which is exported in a memory layout."""
        source = f'{self.source}@{layout}'
        return replace(self, layout=layout, source=source)

    def build(self) -> nn.Module:
        """Build the model with fresh weights, the same in each call.

        The weights of an EfficientMod depend only on its variant, see
        :func:`set_comparable_weights`; those of the other parts of a whole
        model do not depend on the backbone. The CPU's global random state
        is left as it was.

        Raises:
            ConfigError: If the backbone does not go into the config.
        """
        if self.config is not None:
            return self._build_whole(self.config)
        with forked_rng(0):
            backbone = MODELS.build(dict(self.backbone or {}))
        set_comparable_weights(backbone)
        return backbone

    def _build_whole(self, config: str) -> nn.Module:
        cfg = load_config(config)
        import_toolbox(cfg.get('default_scope') or 'mmengine')
        if self.backbone is not None:
            cfg = swap_backbone(cfg, self.backbone)
        with forked_rng(0):
            model = build_model(cfg)
        # Drawn again from the seed, as each backbone draws another number of
        # values before the rest of the model.
        with forked_rng(0):
            for name, child in model.named_children():
                if name == 'backbone':
                    set_comparable_weights(child)
                    continue
                module: Any  # a layer of PyTorch, which can draw new weights
                for module in child.modules():
                    if hasattr(module, 'reset_parameters'):
                        module.reset_parameters()
        return model


def find_model_specs(
    models: Sequence[str], within: str | None = None
) -> list[ModelSpec]:
    """The models that a command line names.

    Args:
        models: What :func:`parse_model_spec` reads, or a pattern with ``*``
            for several names of
            :data:`~mmefficientmod.swap.names.BACKBONES`.
        within: A key of :data:`HOSTS` or a config that the backbones go
            into. Default: None, for backbones alone.

    Raises:
        ConfigError: If a name stands for no model, or is given twice.
    """
    config = HOSTS[within].config if within in HOSTS else within
    if config:
        find_config(config)
    specs = [
        parse_model_spec(name, config)
        for model in models
        for name in expand(model)
    ]
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'the model {name} is named twice')
    return specs


def expand(model: str) -> list[str]:
    """The names of backbones that match a pattern such as ``repvit_*``.

    Args:
        model: A pattern, or any other text, which is returned alone.

    Raises:
        ConfigError: If no name matches.
    """
    if not re.fullmatch(r'[\w*]*\*[\w*]*', model):
        return [model]
    names = fnmatch.filter(BACKBONES, model)
    if not names:
        raise ConfigError(
            f'no name matches {model}; the names are {", ".join(BACKBONES)}'
        )
    return names


def parse_model_spec(text: str, within: str | None = None) -> ModelSpec:
    """The model that a text stands for.

    Args:
        text: A name of :data:`~mmefficientmod.swap.names.BACKBONES`;
            ``timm:NAME``; ``official:PATH:NAME`` for the authors' file and a
            variant; ``FILE.py:CLASS`` or ``FILE.py:CLASS(key=value)``; the
            dict of a registered backbone; or a config. ``@LAYOUT`` after it
            is one of :data:`~mmefficientmod.deploy.layouts.LAYOUTS`, in
            which an EfficientMod is exported.
        within: A config that the backbone goes into. Default: None.

    Raises:
        ConfigError: If the text stands for no model, or for a whole one
            where ``within`` needs a backbone.
    """
    text = text.strip()
    before, at, layout = text.rpartition('@')
    if at and layout in LAYOUTS:
        spec = parse_model_spec(before, within)
        return replace(spec.laid_out(layout), name=f'{spec.name}@{layout}')
    name, published_name = text, None
    backbone: Mapping[str, Any]
    if text.startswith('official:'):
        path, _, variant = text.removeprefix('official:').rpartition(':')
        arch = official_arch(variant)
        import_official(path)
        backbone = dict(type=OfficialEfficientMod, path=path, arch=arch)
        name = f'official:{arch}'
        published_name = f'efficientmod_{arch}'
    elif match := FILE_CLASS.fullmatch(text):
        backbone = dict(
            type=_module_class(match['path'], match['name']),
            **parse_dict(f'dict{match["arguments"] or "()"}'),
        )
        name = Path(match['path']).name + text[len(match['path']) :]
    elif '::' in text or text.endswith('.py'):
        stem = find_config(text).stem
        if within:
            raise ConfigError(
                f'{text} is a whole model; --within needs backbones, which '
                'go into its config'
            )
        return ModelSpec(stem, None, text, stem, config_hash(text))
    else:
        backbone = resolve_backbone(text)
        class_of(backbone)  # refuses an unknown type
        if text.replace('-', '_') in BACKBONES:
            name = published_name = text.replace('-', '_')
    source = backbone_hash(backbone, within)
    return ModelSpec(name, backbone, within, published_name, source)


def _module_class(path: str, name: str) -> type[nn.Module]:
    """A class of a user's file, which must be a ``torch.nn.Module``."""
    module = import_file(path)
    found = getattr(module, name, None)
    if inspect.isclass(found) and issubclass(found, nn.Module):
        return found
    names = [
        key
        for key, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, nn.Module)
        and value.__module__ == module.__name__
    ]
    raise ConfigError(
        f'{path} has no module class {name}; it has '
        f'{", ".join(names) or "none at all"}'
    )
