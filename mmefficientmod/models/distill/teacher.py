"""The teacher: a trained model that a student holds without owning it."""

from __future__ import annotations

import copy
import logging
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from mmefficientmod.checkpoint.loading import load_whole
from mmefficientmod.checkpoint.reading import (
    CheckpointError,
    read_checkpoint,
    select_weights,
)
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError, type_name
from mmefficientmod.config.toolbox import input_size
from mmefficientmod.messages import did_you_mean

# The RegNetY-160 that DeiT and EfficientMod were taught by, as timm calls it.
DEIT_TEACHER = 'timm:regnety_160.deit_in1k'
RANDOM = 'random'


@dataclass(frozen=True)
class Normalisation:
    """What becomes of pixels from 0 to 255 before a network sees them.

    Attributes:
        mean: Subtracted, for each channel or for all.
        std: Divided by, for each channel or for all.
        rgb: Whether red comes first.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    rgb: bool = True

    @classmethod
    def of(cls, preprocessor: nn.Module) -> Normalisation:
        """That of a data preprocessor, of images that are loaded as BGR."""
        # MMPretrain's, MMEngine's with its heirs, and MMSegmentation's.
        flags = ('to_rgb', '_channel_conversion', 'channel_conversion')
        rgb = any(getattr(preprocessor, flag, False) for flag in flags)
        if not getattr(preprocessor, '_enable_normalize', False):
            return cls(rgb=rgb)
        mean, std = preprocessor.mean.flatten(), preprocessor.std.flatten()
        return cls(tuple(mean.tolist()), tuple(std.tolist()), rgb)

    def reversed(self) -> Normalisation:
        """The same with the channels the other way round."""
        return Normalisation(self.mean[::-1], self.std[::-1], not self.rgb)

    def is_like(self, other: Normalisation) -> bool:
        """Whether both do the same; one may have been through float32."""
        return self.rgb == other.rgb and all(
            len(x) == len(y)
            and all(map(partial(math.isclose, rel_tol=1e-6), x, y))
            for x, y in ((self.mean, other.mean), (self.std, other.std))
        )


class Network(nn.Module):
    """A model behind what brings a student's images to it.

    Args:
        model: Returns logits.
        given: The normalisation that the images come with.
        wanted: The one that the model was trained with.
        size: Height and width that it was trained with; None takes images as
            they come.
    """

    def __init__(
        self,
        model: nn.Module,
        given: Normalisation,
        wanted: Normalisation,
        size: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.size = size
        self.flip = given.rgb != wanted.rgb
        if self.flip:
            given = given.reversed()
        self.same = given.is_like(wanted)
        mean, std = _float64(given.mean), _float64(given.std)
        # (x * std + mean - wanted mean) / wanted std, in one step.
        scale = std / _float64(wanted.std)
        shift = (mean - _float64(wanted.mean)) / _float64(wanted.std)
        self.register_buffer('scale', scale.float().view(-1, 1, 1))
        self.register_buffer('shift', shift.float().view(-1, 1, 1))

    def forward(self, images: Tensor) -> Any:
        """A student's images ``(N, C, H, W)`` to the model's logits."""
        images = images.float()
        if self.flip and images.shape[1] == 3:
            images = images.flip(1)
        if not self.same:
            images = images * self.scale + self.shift
        if self.size and tuple(images.shape[2:]) != self.size:
            images = F.interpolate(
                images, self.size, mode='bicubic', antialias=True
            )
        if isinstance(self.model, BaseModel):
            return self.model(images, mode='tensor')
        return self.model(images)


class Teacher:
    """A frozen model that gives the targets of a distillation.

    It is no ``nn.Module``, so that the student that holds it has none of its
    weights: not for the optimizer, nor in its state dict, and its ``train()``,
    ``half()`` or conversion to SyncBN does not reach it. It is built at the
    first call, on the device of the images, and copies and pickles of the
    student build their own if they need it: the average of the weights never
    does, and neither does testing.

    Args:
        model: ``'timm:NAME'`` for a model of timm; a config of MMPretrain or
            MMSegmentation, as a path or ``package::path``; or the dict of a
            registered model. Default: ``timm:regnety_160.deit_in1k``.
        checkpoint: File or URL. Default: what timm has for that name; the
            other kinds need one. ``'random'`` leaves the weights random, to
            try a config where there are none.
        mean: Of the channels, RGB, 0 to 255. Default: as timm or the config
            says; a dict without ``data_preprocessor`` sees what the student
            sees.
        std: Goes with ``mean``.
        size: Side, or height and width, that images are resized to. Default:
            ``'auto'``, which is timm's or, of a config that classifies, that
            of its test pipeline, and otherwise the size that images have. So
            does None.
        student: Data preprocessor of the student.
        num_classes: Classes of the student, if they are known: for a file
            that timm's model is to load, or random weights.
        per_pixel: Whether the logits are of each pixel. Default: False.

    Raises:
        ValueError: If ``mean`` comes without ``std``, or the size is none.
    """

    def __init__(
        self,
        model: str | Mapping[str, Any] = DEIT_TEACHER,
        checkpoint: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        size: int | Sequence[int] | str | None = 'auto',
        *,
        student: nn.Module,
        num_classes: int | None = None,
        per_pixel: bool = False,
    ) -> None:
        if (mean is None) != (std is None):
            raise ValueError('the teacher has one of mean and std; give both')
        if isinstance(size, int):
            size = (size, size)
        if isinstance(size, (list, tuple)) and len(size) == 2:
            size = tuple(size)
        elif size not in ('auto', None):
            raise ValueError(
                f"the teacher has size={size!r}; it is 'auto', None, a side "
                'or height and width, in pixels'
            )
        self.model = model
        self.checkpoint = checkpoint
        self.wanted = (
            None if mean is None else Normalisation(tuple(mean), tuple(std))
        )
        self.size = size
        self.given = Normalisation.of(student)
        self.num_classes = num_classes
        self.per_pixel = per_pixel
        self.network: Network | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, 'network': None}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The logits for a student's batch.

        They are those of evaluation, in the precision of the autocast that
        the student runs in.

        Args:
            images: ``(N, C, H, W)`` as the student sees them.

        Returns:
            ``(N, classes)`` or, per pixel, ``(N, classes, H', W')``.

        Raises:
            ConfigError: If the teacher cannot be built, or gives no logits.
            CheckpointError: If its weights cannot be had or do not fit.
        """
        if self.network is None:
            self.network = self._build()
        if self.network.scale.device != images.device:
            self.network.to(images.device)
        logits = self.network(images)
        ndim, shape = (4, ', H, W') if self.per_pixel else (2, '')
        if not isinstance(logits, Tensor) or logits.ndim != ndim:
            got = getattr(logits, 'shape', type(logits).__name__)
            raise ConfigError(
                f'the teacher {self} gives no logits (N, classes{shape}), but '
                f'{got}'
            )
        return logits

    def __str__(self) -> str:
        if isinstance(self.model, str):
            return self.model
        return type_name(self.model)

    def _build(self) -> Network:
        with _own_luck():
            if str(self).startswith('timm:'):
                model, wanted, size = self._from_timm(str(self)[5:])
            elif isinstance(self.model, str):
                model, wanted, size = self._from_config(self.model)
            else:
                model, wanted, size = self._from_dict(self.model), None, None
                if self.model.get('data_preprocessor'):
                    wanted = Normalisation.of(model.data_preprocessor)
        wanted = self.wanted or wanted or self.given
        size = size if self.size == 'auto' else self.size
        network = Network(model, self.given, wanted, size)
        network.requires_grad_(False)
        network.eval()  # by itself: OpenMMLab's backbones return None
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        sees = f'{size[0]}x{size[1]} images' if size else 'images as they come'
        print_log(
            f'teacher {self}: {millions:.1f} M parameters, {sees}, '
            f'mean {_rounded(wanted.mean)}, std {_rounded(wanted.std)}',
            logger='current',
        )
        if self.checkpoint == RANDOM:
            print_log(
                f'The teacher {self} has random weights, from which nothing '
                'can be learned; give a trained one by --cfg-options '
                'model.teacher.model=CONFIG model.teacher.checkpoint=FILE',
                logger='current',
                level=logging.WARNING,
            )
        return network

    def _from_timm(
        self, name: str
    ) -> tuple[nn.Module, Normalisation, tuple[int, int]]:
        try:
            import timm
        except ModuleNotFoundError:
            raise ConfigError(
                f'the teacher {self} needs timm, which is not installed: run '
                '`uv pip install timm`'
            ) from None
        if ':' not in name and not timm.is_model(name):
            hint = did_you_mean(name, timm.list_models(), most=3)
            raise ConfigError(
                f'timm {timm.__version__} has no model {name}{hint}'
            )
        if self.checkpoint is None:
            model = self._create(name, pretrained=True)
        elif self.checkpoint == RANDOM:
            model = self._create(name, num_classes=self.num_classes)
        elif not ('://' in self.checkpoint or Path(self.checkpoint).is_file()):
            raise CheckpointError(
                f'checkpoint {self.checkpoint} of the teacher does not exist'
            )
        else:
            with get_local_path(self.checkpoint) as path:
                overlay = dict(file=str(path))
                if self.num_classes:
                    # With another number timm would leave the head random.
                    overlay['num_classes'] = self.num_classes
                model = self._create(
                    name,
                    pretrained=True,
                    num_classes=self.num_classes,
                    pretrained_cfg_overlay=overlay,
                )
        data = timm.data.resolve_model_data_config(model)
        wanted = Normalisation(
            tuple(255 * x for x in data['mean']),
            tuple(255 * x for x in data['std']),
        )
        return model, wanted, tuple(data['input_size'][1:])

    def _create(self, name: str, **options: Any) -> nn.Module:
        import timm

        try:
            return timm.create_model(name, **options)
        # What the hub raises depends on the libraries that it has.
        except Exception as error:
            reason = textwrap.shorten(str(error), 400) or type(error).__name__
            if self.checkpoint is None:
                raise CheckpointError(
                    f'the weights of the teacher {self} cannot be had: '
                    f'{reason}. Without a network, fetch the file elsewhere '
                    'and name it by teacher.checkpoint'
                ) from error
            classes = options['num_classes'] or 'its own number of'
            raise CheckpointError(
                f'the teacher {self} cannot be built with '
                f'checkpoint={self.checkpoint!r} and {classes} classes, as '
                f'the student has: {reason}'
            ) from error

    def _from_config(
        self, name: str
    ) -> tuple[nn.Module, Normalisation, tuple[int, int] | None]:
        cfg = load_config(name)
        node = ConfigDict(cfg.get('model') or {})
        # Where MMPretrain keeps it.
        if cfg.get('data_preprocessor'):
            node.setdefault('data_preprocessor', cfg.data_preprocessor)
        scope = cfg.get('default_scope') or 'mmengine'
        with DefaultScope.overwrite_default_scope(scope):
            model = self._from_dict(node)
        size = None
        if scope == 'mmpretrain':
            with suppress(ConfigError):  # it has no test pipeline
                size = input_size(cfg)
        return model, Normalisation.of(model.data_preprocessor), size

    def _from_dict(self, node: Mapping[str, Any]) -> nn.Module:
        if not node.get('type'):
            raise ConfigError(
                f'the teacher {self.model!r} has no model with a type'
            )
        if self.checkpoint is None:
            raise ConfigError(
                f'the teacher {self} has no weights; name a file of them by '
                'teacher.checkpoint'
            )
        model = MODELS.build(copy.deepcopy(node))
        if self.checkpoint != RANDOM:
            content = read_checkpoint(self.checkpoint)
            weights, _ = select_weights(content, self.checkpoint)
            load_whole(model, weights, self.checkpoint)
        return model


@contextmanager
def _own_luck() -> Iterator[None]:
    """Leave the student's random numbers alone, and be alike everywhere."""
    with torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` would seed the GPUs, too.
        torch.default_generator.manual_seed(0)
        yield


def _float64(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(x, 3) for x in values]
