"""How images are normalised for a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from torch import nn


@dataclass(frozen=True)
class ImageNormalisation:
    """How pixels from 0 to 255 are normalised for a model.

    Attributes:
        mean: Subtracted, one value for each channel or one for all. Default:
            0.
        std: Divided by, one value for each channel or one for all. Default:
            1.
        rgb: Whether the channels are RGB, and not BGR. Default: True.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    rgb: bool = True

    @classmethod
    def of(cls, preprocessor: nn.Module) -> ImageNormalisation:
        """The normalisation of a data preprocessor for BGR images."""
        # The names in MMPretrain, in MMEngine and MMDetection, and in
        # MMSegmentation.
        flags = ('to_rgb', '_channel_conversion', 'channel_conversion')
        rgb = any(getattr(preprocessor, flag, False) for flag in flags)
        if not getattr(preprocessor, '_enable_normalize', False):
            return cls(rgb=rgb)
        mean, std = map(preprocessor.get_buffer, ('mean', 'std'))
        return cls(
            tuple(mean.flatten().tolist()), tuple(std.flatten().tolist()), rgb
        )

    def reversed(self) -> ImageNormalisation:
        """The same normalisation for channels in the reverse order."""
        return ImageNormalisation(
            self.mean[::-1], self.std[::-1], not self.rgb
        )

    def is_like(self, other: ImageNormalisation) -> bool:
        """Whether both are equal, up to rounding to float32."""
        return self.rgb == other.rgb and all(
            len(x) == len(y)
            and all(map(partial(math.isclose, rel_tol=1e-6), x, y))
            for x, y in ((self.mean, other.mean), (self.std, other.std))
        )
