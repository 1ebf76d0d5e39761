"""The teacher: a trained model that is no part of its student."""

from __future__ import annotations

import copy
import logging
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.fileio import get_local_path
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmefficientmod.checkpoint.entry import read_by_us
from mmefficientmod.checkpoint.loading import load_whole
from mmefficientmod.checkpoint.reading import (
    CheckpointError,
    check_weights,
    read_checkpoint,
    select_weights,
)
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError, type_name
from mmefficientmod.config.toolbox import default_scope, input_size, model_dict
from mmefficientmod.models.backbones.timm_models import check_name
from mmefficientmod.models.normalisation import ImageNormalisation
from mmefficientmod.rng import forked_rng

# timm's name of the RegNetY-160 that taught DeiT and EfficientMod.
DEIT_TEACHER = 'timm:regnety_160.deit_in1k'
# In place of a checkpoint: the weights stay random.
RANDOM = 'random'


class Teacher:
    """A frozen model whose logits are the targets of a distillation.

    It is not a ``nn.Module``, so that the student does not have its weights:
    neither the optimizer nor the state dict has them, and the student's
    ``train()``, ``half()`` and conversion to SyncBN do not change them. The
    model is built at the first call, on the device of the images. A copy or
    pickle of the student builds its own at its first call. Testing, and the
    averaged copy of the student (``EMAHook``), never need one.

    Args:
        model: ``'timm:NAME'`` for a model of timm; a config of MMPretrain or
            MMSegmentation, as a path or ``package::path``; or the dict of a
            registered model. Default: ``timm:regnety_160.deit_in1k``.
        checkpoint: File or URL. Default: the weights that timm has for this
            name; the other kinds of models need a checkpoint. ``'random'``
            leaves the weights random, to try a config without weights.
        mean: Mean of each channel that the model was trained with, RGB, 0 to
            255. Default: that of timm or the config; for a dict without
            ``data_preprocessor`` that of the student.
        std: Standard deviation of each channel, given together with ``mean``.
        size: Side, or height and width, in pixels, to which images are
            resized. None leaves them as they are. Default: ``'auto'``, the
            input size of timm's model or of the test pipeline in a config of
            MMPretrain; other models get the images as they are.
        student: Data preprocessor of the student.
        num_classes: Classes of the student, with which a model of timm is
            built for a checkpoint or random weights. Default: the model's own
            number.
        per_pixel: Whether the logits are those of pixels. Default: False.

    Raises:
        ValueError: If ``mean`` is given without ``std`` or the reverse, or
            ``size`` is not a size.
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
        self.model = model
        self.checkpoint = checkpoint
        self.wanted: ImageNormalisation | None = None
        if mean is not None and std is not None:
            self.wanted = ImageNormalisation(tuple(mean), tuple(std))
        elif mean is not None or std is not None:
            raise ValueError('the teacher has one of mean and std; give both')
        self.size = _parse_size(size)
        self.given = ImageNormalisation.of(student)
        self.num_classes = num_classes
        self.per_pixel = per_pixel
        self.network: TeacherNetwork | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, 'network': None}

    def __str__(self) -> str:
        if isinstance(self.model, str):
            return self.model
        return type_name(self.model)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The logits for a batch of the student.

        The model is in evaluation mode, and runs in the precision of the
        student's autocast.

        Args:
            images: ``(N, C, H, W)``, normalised as for the student.

        Returns:
            ``(N, classes)`` or, per pixel, ``(N, classes, H', W')``.

        Raises:
            ConfigError: If the model cannot be built or gives no logits.
            CheckpointError: If its weights cannot be read or do not fit.
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

    def _build(self) -> TeacherNetwork:
        """Build the model, load its weights and freeze it."""
        wanted: ImageNormalisation | None = None
        size: tuple[int, int] | None = None
        # With a fixed seed, random weights are the same in all processes.
        with forked_rng(0):
            if str(self).startswith('timm:'):
                model, wanted, size = self._from_timm(str(self)[5:])
            elif isinstance(self.model, str):
                model, wanted, size = self._from_config(self.model)
            else:
                model = self._from_dict(self.model)
                if self.model.get('data_preprocessor'):
                    wanted = _normalisation_of(model)
        wanted = self.wanted or wanted or self.given
        if not isinstance(self.size, str):
            size = self.size
        network = TeacherNetwork(model, self.given, wanted, size)
        network.requires_grad_(False)
        # A statement of its own: train() of OpenMMLab's backbones gives None.
        network.eval()
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
    ) -> tuple[nn.Module, ImageNormalisation, tuple[int, int]]:
        try:
            if ':' not in name:  # otherwise the name is one of a hub
                check_name(name)
            import timm
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f'the teacher {self} cannot be built: {error}'
            ) from None
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
                overlay: dict[str, Any] = dict(file=str(path))
                if self.num_classes:
                    # With another number, timm would leave the head random.
                    overlay['num_classes'] = self.num_classes
                model = self._create(
                    name,
                    pretrained=True,
                    num_classes=self.num_classes,
                    pretrained_cfg_overlay=overlay,
                )
        data = timm.data.resolve_model_data_config(model)
        wanted = ImageNormalisation(
            tuple(255 * x for x in data['mean']),
            tuple(255 * x for x in data['std']),
        )
        _, height, width = data['input_size']
        return model, wanted, (height, width)

    def _create(self, name: str, **options: Any) -> nn.Module:
        import timm

        try:
            with read_by_us():
                model = timm.create_model(name, **options)
            check_weights(model.state_dict(), self.checkpoint or name)
            return model
        # The type of a hub's error depends on the installed libraries.
        except Exception as error:
            text = textwrap.shorten(str(error), 400) or type(error).__name__
            if self.checkpoint is None:
                raise CheckpointError(
                    f'the weights of the teacher {self} cannot be had: '
                    f'{text}. Without a network, get the file elsewhere and '
                    'name it by teacher.checkpoint'
                ) from error
            classes = options['num_classes'] or 'its own number of'
            raise CheckpointError(
                f'the teacher {self} cannot be built with '
                f'checkpoint={self.checkpoint!r} and {classes} classes, as '
                f'the student has: {text}'
            ) from error

    def _from_config(
        self, name: str
    ) -> tuple[nn.Module, ImageNormalisation, tuple[int, int] | None]:
        cfg = load_config(name)
        with default_scope(cfg):
            model = self._from_dict(model_dict(cfg))
        size = None
        if cfg.get('default_scope') == 'mmpretrain':
            with suppress(ConfigError):  # no test pipeline
                size = input_size(cfg)
        return model, _normalisation_of(model), size

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


class TeacherNetwork(nn.Module):
    """A model that adapts the images of a student to its own normalisation.

    Args:
        model: Returns logits.
        given: Normalisation of the images.
        wanted: Normalisation that the model was trained with.
        size: Height and width, in pixels, to which images are resized; None
            leaves them as they are.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        given: ImageNormalisation,
        wanted: ImageNormalisation,
        size: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.size = size
        self.flip = given.rgb != wanted.rgb
        if self.flip:
            given = given.reversed()
        self.same = given.is_like(wanted)
        # (x * given std + given mean - wanted mean) / wanted std, in one step
        given_mean, given_std = _float64(given.mean), _float64(given.std)
        wanted_mean, wanted_std = _float64(wanted.mean), _float64(wanted.std)
        scale = given_std / wanted_std
        shift = (given_mean - wanted_mean) / wanted_std
        self.register_buffer('scale', scale.float().view(-1, 1, 1))
        self.register_buffer('shift', shift.float().view(-1, 1, 1))

    def forward(self, images: Tensor) -> Any:
        """The student's images ``(N, C, H, W)`` to the model's logits."""
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


def _parse_size(
    size: int | Sequence[int] | str | None,
) -> tuple[int, int] | str | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return size[0], size[1]
    if size is None or size == 'auto':
        return size
    raise ValueError(
        f"the teacher has size={size!r}; it is 'auto', None, a side or height "
        'and width, in pixels'
    )


def _normalisation_of(model: nn.Module) -> ImageNormalisation:
    return ImageNormalisation.of(model.get_submodule('data_preprocessor'))


def _float64(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(x, 3) for x in values]
