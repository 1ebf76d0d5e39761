"""What can be measured: names of models, and the models behind them.

A backbone is one dict, whoever wrote it; alone it is built, within a config it
is swapped in. A config is a whole model.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

import mmefficientmod
from mmefficientmod.config.files import find_config, load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import build_model, import_toolbox
from mmefficientmod.models.backbones.efficientmod import ARCHS, EfficientMod
from mmefficientmod.models.backbones.efficientmod_weights import (
    rename_official_keys,
)
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
class Candidate:
    """A model that can be built.

    Attributes:
        name: What tables call it.
        backbone: Dict of a backbone; None where a config is the model.
        config: A config that is the model, or that the backbone goes into;
            None for a backbone alone.
        known_as: What its published results are found by: the backbone's
            name in :data:`~mmefficientmod.zoo.BACKBONES`, or that of the
            config; None for others.
        source: Hash of the file that defines it, so that a result is known
            to be of this code.
    """

    name: str
    backbone: Mapping[str, Any] | None
    config: str | None
    known_as: str | None
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


def find_candidates(
    specs: Sequence[str], within: str | None = None
) -> list[Candidate]:
    """The candidates of a command line.

    Args:
        specs: Names of models; see :func:`find_candidate`. With a ``*``, all
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
        find_candidate(name, config) for spec in specs for name in expand(spec)
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


def find_candidate(spec: str, within: str | None = None) -> Candidate:
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
    name, known_as = spec, None
    if spec.startswith('official:'):
        path, _, variant = spec.removeprefix('official:').rpartition(':')
        arch = _official_arch(variant)
        backbone = dict(type=OfficialEfficientMod, path=path, arch=arch)
        name = f'official:{arch}'
        known_as = f'efficientmod_{arch}'
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
        source = _hash(_text(spec) + _own_code())
        return Candidate(path.stem, None, spec, path.stem, source)
    else:
        backbone = resolve_backbone(spec)
        class_of(backbone)
        if spec.replace('-', '_') in BACKBONES:
            name = known_as = spec.replace('-', '_')
    source = _source(backbone, within)
    return Candidate(name, backbone, within, known_as, source)


def _official_arch(variant: str) -> str:
    """``s_conv`` of ``s_conv``, ``efficientmod_s_conv``, ``efficientMod_...``.

    Raises:
        ConfigError: If there is no such variant.
    """
    name = variant.lower().replace('-', '_').removeprefix('efficientmod_')
    if name not in ARCHS:
        raise ConfigError(
            f'official:PATH:{variant} names no variant; they are '
            f'{", ".join(ARCHS)}'
        )
    return name


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


def import_file(path: str) -> ModuleType:
    """Import a file that is in no package.

    Raises:
        ConfigError: If it is not there, or fails.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise ConfigError(f'{path} does not exist')
    name = f'candidate_{_hash(str(file))}'
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where timm's registry and pickle look
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the authors' uses old names
            spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f'{path} cannot be imported: {type(error).__name__}: {error}'
        ) from error
    return module


def import_official(path: str) -> dict[str, Any]:
    """The authors' file ``models/EfficientMod.py``, imported.

    Returns:
        For each variant, what builds their classifier.

    Raises:
        ConfigError: If the file is not there or is another one.
    """
    found = {k.lower(): v for k, v in vars(import_file(path)).items()}
    builders = {arch: found.get(f'efficientmod_{arch}') for arch in ARCHS}
    if not all(builders.values()):
        raise ConfigError(
            f'{path} does not define the variants of EfficientMod; it should '
            'be models/EfficientMod.py of https://github.com/ma-xu/EfficientMod'
        )
    return builders


class OfficialEfficientMod(BaseModule):
    """The authors' classifier as a backbone, as their dense models use it.

    Its outputs are those of the four stages before any downsampling,
    ``(N, C_i, H_i, W_i)``; their final norm and head are taken out.

    Args:
        path: Their file ``models/EfficientMod.py``. It is imported, never
            copied.
        arch: Name of a variant, one of ours.
        out_indices: Stages to return. Default: all four.
        init_cfg: As in MMEngine; there is no checkpoint to load here.
    """

    def __init__(
        self,
        path: str,
        arch: str,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        init_cfg: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.out_indices = tuple(out_indices)
        self.model = import_official(path)[arch]()
        self.model.norm = self.model.head = None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(N, 3, H, W)`` to one ``(N, C_i, H_i, W_i)`` a level."""
        outs = []
        x = self.model.patch_embed(x.permute(0, 2, 3, 1))
        for i, layer in enumerate(self.model.layers):
            for block in layer.blocks:
                x = block(x)
            if i in self.out_indices:
                outs.append(x.permute(0, 3, 1, 2).contiguous())
            if layer.downsample is not None:
                x = layer.downsample(x)
        return tuple(outs)


# ----------------------------------------------------------------- weights


def efficientmod_of(module: nn.Module) -> nn.Module | None:
    """The EfficientMod that a backbone is, by whomever; None for others."""
    if isinstance(module, OfficialEfficientMod):
        return module.model
    return module if isinstance(module, EfficientMod) else None


def share_weights(backbone: nn.Module) -> None:
    """Give an EfficientMod the weights that all of its variant have here.

    Each tensor is drawn from its name and shape alone, whoever's code it is
    in. They are far from the initial ones, at which the modulation blocks
    hardly do anything: biases, norms and layer scales from N(0.5, 0.2), the
    linear layers with their initial deviation 0.02, convolutions with
    PyTorch's. Drop path is turned off, as its noise differs between models.

    Args:
        backbone: Changed in place; another backbone stays as it is.
    """
    model = efficientmod_of(backbone)
    if model is None:
        return
    weights = model.state_dict()
    for key, name in _canonical_names(model).items():
        weights[key] = _draw(name, weights[key])
    model.load_state_dict(weights)
    for module in model.modules():
        if hasattr(module, 'drop_prob'):
            module.drop_prob = 0.0


def weights_key(backbone: nn.Module) -> str | None:
    """Equal for two backbones with the same weights by construction.

    Their outputs are equal then, too, but for rounding.
    """
    model = efficientmod_of(backbone)
    if model is None:
        return None
    shapes = {
        name: tuple(model.state_dict()[key].shape)
        for key, name in _canonical_names(model).items()
    }
    return _hash(str(sorted(shapes.items())))


def _canonical_names(model: nn.Module) -> dict[str, str]:
    """For each weight in the state dict, the name that it has in ours."""
    buffers = dict(model.named_buffers())
    keys = {key: key for key in model.state_dict() if key not in buffers}
    return {key: name for name, key in rename_official_keys(keys).items()}


def _draw(name: str, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(crc32(name.encode()))
    values = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    if like.ndim == 1:
        return values.mul_(0.2).add_(0.5)
    fan_in = like[0].numel()
    return values.mul_((3 * fan_in) ** -0.5 if like.ndim == 4 else 0.02)


# ------------------------------------------------------------------ source


def _source(backbone: Mapping[str, Any], config: str | None) -> str:
    """Hash of the dict, the files with the backbone's code, the config."""
    kind = class_of(backbone)
    paths = [inspect.getfile(base) for base in kind.__mro__[:-1]]
    if 'path' in backbone:
        paths.append(backbone['path'])
    texts = [
        Path(path).read_text()
        for path in dict.fromkeys(paths)
        if Path(path).is_file()
    ]
    if config:
        texts.append(_text(config))
    texts.append(_own_code())
    return _hash('\n'.join([str(dict(backbone)), *texts]))


def _text(config: str) -> str:
    """All that a config says; to format it well would take seconds."""
    return str(load_config(config).to_dict())


@functools.cache
def _own_code() -> str:
    """Hash of this package, which runs all models and is some of them.

    What only shows results is left out.
    """
    root = Path(mmefficientmod.__file__).parent
    paths = sorted(
        path
        for path in root.rglob('*.py')
        if '.mim' not in path.parts and not path.name.endswith('report.py')
    )
    return _hash('\n'.join(path.read_text() for path in paths))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
