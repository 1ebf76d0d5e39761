"""Miniatures and the checks of data."""

import hashlib
import os

import cv2
import numpy as np
import pytest
from mmengine.dataset import Compose

from mmefficientmod.config import ConfigError, load_config
from mmefficientmod.datasets import (
    DataError,
    apply_mini,
    check_data_exists,
    guard,
)
from mmefficientmod.datasets.ade20k_mini import SPLITS
from mmefficientmod.datasets.mini import MINIATURES, Miniature, prepare

CONFIG = 'mmefficientmod::seg/fpn_efficientmod_xxs_ade20k.py'
ADE = MINIATURES['ADE20KDataset']


def digest(folder):
    files = sorted(p for p in folder.rglob('*') if p.is_file())
    text = b''.join(p.name.encode() + p.read_bytes() for p in files)
    return hashlib.sha256(text).hexdigest()


def test_ade20k_mini_is_what_it_says(mini_root):
    folder = mini_root / ADE.folder
    present, pixels = set(), 0
    for split, count in SPLITS.items():
        images = sorted((folder / 'images' / split).glob('*.jpg'))
        labels = sorted((folder / 'annotations' / split).glob('*.png'))
        assert [p.stem for p in images] == [p.stem for p in labels]
        assert len(images) == count
        for image, label in zip(images, labels, strict=True):
            assert cv2.imread(str(image)).shape == (96, 128, 3)
            array = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
            assert array.shape == (96, 128)
            assert array.dtype == np.uint8
            present |= set(np.unique(array))
            pixels += (array > 0).mean()
    assert present == {0, 2, 3, 5, 7, 10, 13, 21}
    assert pixels / sum(SPLITS.values()) > 0.95
    pictures = {p.read_bytes() for p in folder.rglob('*.jpg')}
    assert len(pictures) == sum(SPLITS.values())  # none twice


def test_miniatures_are_deterministic(mini_root, tmp_path):
    for mini in MINIATURES.values():
        again = prepare(mini, str(tmp_path))
        assert digest(again) == digest(mini_root / mini.folder)


def test_a_miniature_is_written_once_and_whole(tmp_path):
    calls = []

    def write(folder):
        calls.append(folder)
        (folder / 'half').touch()
        if len(calls) == 1:
            raise KeyboardInterrupt

    mini = Miniature('x', write, (1, 1), (1, 1), 1, 1)
    with pytest.raises(KeyboardInterrupt):
        prepare(mini, str(tmp_path))
    assert os.listdir(tmp_path) == []
    assert prepare(mini, str(tmp_path)) == tmp_path / 'x'
    assert prepare(mini, str(tmp_path)) == tmp_path / 'x'
    assert len(calls) == 2


def test_mini_changes_data_size_and_schedule_alone(mini_root):
    plain, cfg = load_config(CONFIG), load_config(CONFIG)
    apply_mini(cfg, str(mini_root))
    assert cfg.train_dataloader.dataset.data_root == str(
        mini_root / ADE.folder
    )
    assert cfg.train_cfg.max_iters == ADE.max_iters
    assert cfg.param_scheduler[1]['end'] == ADE.max_iters
    assert cfg.model.data_preprocessor.size == ADE.crop_size
    plain.model.data_preprocessor.size = ADE.crop_size
    assert cfg.model == plain.model
    assert cfg.optim_wrapper == plain.optim_wrapper
    assert cfg.val_evaluator == plain.val_evaluator
    for loader in ('train_dataloader', 'val_dataloader'):
        steps = [t.type for t in cfg[loader].dataset.pipeline]
        assert steps == [t.type for t in plain[loader].dataset.pipeline]


def test_mini_of_another_data_set_is_refused():
    cfg = load_config('mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py')
    with pytest.raises(ConfigError, match='PascalVOCDataset.*ADE20KDataset'):
        apply_mini(cfg)


def test_missing_data_is_named_with_the_remedy(tmp_path):
    loaders = ('train_dataloader', 'val_dataloader')
    cfg = load_config(CONFIG, dict(data_root=str(tmp_path / 'ade')))
    with pytest.raises(DataError, match=r'ade does not exist.*--mini'):
        check_data_exists(cfg, loaders)
    (tmp_path / 'ade/images/training').mkdir(parents=True)
    (tmp_path / 'ade/annotations/training').mkdir(parents=True)
    with pytest.raises(DataError, match=r'images/training is empty'):
        check_data_exists(cfg, loaders)
    (tmp_path / 'ade/images/training/a.jpg').touch()
    with pytest.raises(DataError, match=r'images/validation does not exist'):
        check_data_exists(cfg, loaders)
    coco = load_config(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        dict(data_root=str(tmp_path) + '/'),
    )
    with pytest.raises(DataError, match=r'train2017 does not exist'):
        check_data_exists(coco, loaders)


@pytest.fixture
def dataset(mini_root):
    from mmefficientmod.cli import import_toolbox

    import_toolbox('mmseg')
    from mmseg.registry import DATASETS

    cfg = load_config(CONFIG)
    apply_mini(cfg, str(mini_root))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    guard(dataset)
    return dataset


def test_good_data_passes_the_check(dataset):
    before = repr(dataset.pipeline)
    channels, *size = dataset[0]['inputs'].shape
    assert channels == 3
    assert 0 < max(size) <= max(ADE.crop_size)
    guard(dataset)  # twice is as good as once
    assert repr(dataset.pipeline) == before
    assert isinstance(dataset.pipeline, Compose)


@pytest.mark.parametrize('wrap', ['RepeatDataset', 'ConcatDataset'])
def test_check_reaches_wrapped_data_sets(dataset, wrap):
    from mmengine import dataset as wrappers

    dataset.pipeline.transforms = [
        t.transform for t in dataset.pipeline.transforms
    ]
    inner = dict(RepeatDataset=(dataset, 2), ConcatDataset=([dataset],))[wrap]
    guard(getattr(wrappers, wrap)(*inner))
    info = dataset.get_data_info(0)
    with pytest.raises(DataError, match='nowhere'):
        dataset.pipeline({**info, 'img_path': '/nowhere.jpg'})


@pytest.mark.parametrize(
    ('break_it', 'message'),
    [
        (dict(img_path=b'no image'), 'LoadImageFromFile failed on .*bad'),
        (dict(img_path=None), 'bad.*FileNotFound'),
        (dict(seg_map_path=b'no image'), 'LoadAnnotations failed on .*bad'),
        (dict(seg_map_path=np.full((9, 9), 151, np.uint8)), 'label 151'),
        (dict(seg_map_path=np.full((9, 9), 254, np.uint8)), 'label 254'),
        (dict(seg_map_path=np.zeros((9, 9, 3), np.uint8)), 'one channel'),
    ],
    ids=lambda x: x if isinstance(x, str) else '',
)
def test_bad_files_are_named(dataset, tmp_path, break_it, message):
    info = dataset.get_data_info(0)
    ((key, content),) = break_it.items()
    path = tmp_path / 'bad.png'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        cv2.imwrite(str(path), content)
    with pytest.raises(DataError, match=message) as error:
        dataset.pipeline({**info, key: str(path)})
    assert str(path) in str(error.value)


def test_labels_0_to_150_and_255_are_good(dataset, tmp_path):
    info = dataset.get_data_info(0)
    labels = np.zeros((96, 128), np.uint8)
    labels.flat[:151] = np.arange(151)
    labels.flat[151] = 255
    cv2.imwrite(str(tmp_path / 'good.png'), labels)
    out = dataset.pipeline(
        {**info, 'seg_map_path': str(tmp_path / 'good.png')}
    )
    assert out['data_samples'].gt_sem_seg.data.max() <= 255
