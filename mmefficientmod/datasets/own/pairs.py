"""A data set of images with masks whose files a list pairs."""

from __future__ import annotations

import json
from pathlib import Path

from mmseg.datasets import BaseSegDataset

from mmefficientmod.registry import DATASETS


@DATASETS.register_module()
class PairedMasks(BaseSegDataset):
    """Images and their masks, from a list.

    MMSegmentation's data sets find a mask by the name of the image, in one
    folder and with one suffix for all.

    Args are those of ``BaseSegDataset``. ``ann_file`` is a JSON file with a
    list of pairs, path of the image and path of the mask, both relative to
    ``data_root`` or absolute.
    """

    def load_data_list(self) -> list[dict]:
        """A dict for each pair, as ``BaseSegDataset`` has it."""
        root = Path(self.data_root or '')
        pairs = json.loads(Path(self.ann_file).read_text())
        return [
            dict(
                img_path=str(root / image),
                seg_map_path=str(root / mask),
                label_map=self.label_map,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[],
            )
            for image, mask in pairs
        ]
