"""Images as the test of a config prepares them, to measure activations on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose

from mmefficientmod.apis.inference import find_pipeline
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.toolbox import default_scope
from mmefficientmod.datasets.checks import DataError
from mmefficientmod.deploy.images import as_batch
from mmefficientmod.messages import shorten


def prepare_images(
    cfg: Config,
    scope: str,
    preprocessor: Any,
    paths: Sequence[Path],
    size: tuple[int, int] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Prepare image files as the test of a config does.

    They go through the steps of the test and through the data preprocessor,
    without its padding, which is in an exported file.

    Args:
        cfg: The config.
        scope: Name of its toolbox.
        preprocessor: The data preprocessor of its model.
        paths: The files.
        size: Height and width in pixels; an image of another size after the
            steps of the test is resized to it. Default: as the test leaves
            it.

    Yields:
        Of each file the raw image ``(1, H, W, 3)``, uint8 RGB, and what the
        model takes ``(1, 3, H, W)``, float32, normalised.

    Raises:
        ConfigError: If the test does not end in one image of pixels.
        DataError: If a file cannot be read.
    """
    with default_scope(cfg):
        steps = Compose(find_pipeline(cfg, scope))
    for path in paths:
        try:
            data = steps(dict(img_path=str(path), img_id=0))
        except Exception as error:
            raise DataError(
                f'{path} cannot be prepared by the steps of the test '
                f'({shorten(str(error))})'
            ) from error
        inputs = data['inputs']
        if not isinstance(inputs, torch.Tensor) or inputs.ndim != 3:
            raise ConfigError(
                'the test of the config makes several images of one, so that '
                '--calibrate cannot prepare images by it'
            )
        if size is not None and inputs.shape[1:] != size:
            image = inputs.permute(1, 2, 0).numpy()
            resized = as_batch([image], 1, *size)[0]
            inputs = torch.from_numpy(resized).permute(2, 0, 1)
        height, width = inputs.shape[1:]
        raw = mmcv.bgr2rgb(inputs.permute(1, 2, 0).numpy()).astype(np.uint8)
        samples = data.get('data_samples')
        if samples is not None:
            samples.set_metainfo(dict(img_shape=(height, width)))
        with torch.no_grad():
            found = preprocessor(
                dict(inputs=[inputs], data_samples=[samples]), False
            )
        normalised = found['inputs'][:, :, :height, :width]
        yield (
            np.ascontiguousarray(raw[None]),
            np.ascontiguousarray(normalised.float().numpy()),
        )
