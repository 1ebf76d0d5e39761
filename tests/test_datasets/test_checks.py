"""The generated miniatures, and the checks of data sets."""

import hashlib
import importlib
import os
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, init_default_scope
from pycocotools.coco import COCO as CocoApi

from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError, dataset_dicts
from mmefficientmod.datasets import (
    DataError,
    apply_mini,
    name_file_on_error,
)
from mmefficientmod.datasets.checks import check_paths, owner_of
from mmefficientmod.datasets.mini import (
    MINIATURES,
    ade20k,
    coco,
    imagenet,
    prepare,
)
from mmefficientmod.findings import Findings

CONFIG = 'mmefficientmod::seg/fpn_efficientmod_xxs_ade20k.py'
ADE = MINIATURES['ADE20KDataset']
COCO = MINIATURES['CocoDataset']
IMAGENET = MINIATURES['ImageNet']
DET = 'mmefficientmod::det/mask_rcnn_efficientmod_s_fpn_1x_coco.py'
CLS = 'mmefficientmod::cls/efficientmod_s_in1k.py'


def check_data_exists(cfg, loaders):
    """Raise what the checks before a run say of the paths of data sets."""
    found = Findings()
    for loader in loaders:
        for dataset in dataset_dicts(cfg, loader):
            found.add(check_paths(dataset, owner_of(dataset, loader)))
    if found.errors:
        raise DataError(found.message())


def digest(folder):
    files = sorted(p for p in folder.rglob('*') if p.is_file())
    text = b''.join(p.name.encode() + p.read_bytes() for p in files)
    return hashlib.sha256(text).hexdigest()


def test_ade20k_mini_has_the_layout_of_ade20k(mini_root):
    folder = mini_root / ADE.folder
    present, pixels = set(), 0
    for split, count in ade20k.SPLITS.items():
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
    assert ADE.images == ade20k.SPLITS['training']
    assert present == {0, 2, 3, 5, 7, 10, 13, 21}
    assert pixels / sum(ade20k.SPLITS.values()) > 0.95
    pictures = {p.read_bytes() for p in folder.rglob('*.jpg')}
    assert len(pictures) == sum(ade20k.SPLITS.values())  # all differ


@pytest.mark.parametrize('split', coco.SPLITS)
def test_coco_mini_has_the_layout_of_coco(mini_root, split):
    folder = mini_root / COCO.folder
    path = folder / f'annotations/instances_{split}.json'
    api = CocoApi(str(path))
    assert len(api.getCatIds()) == 80
    assert api.loadCats([1, 3, 13, 90]) == [
        dict(id=1, name='person'),
        dict(id=3, name='car'),
        dict(id=13, name='stop sign'),
        dict(id=90, name='toothbrush'),
    ]
    images = api.loadImgs(api.getImgIds())
    assert len(images) == coco.SPLITS[split]
    files = {p.name for p in (folder / split).iterdir()}
    assert files == {image['file_name'] for image in images}
    assert any(not api.getAnnIds(image['id']) for image in images)
    annotations = api.loadAnns(api.getAnnIds())
    kinds = Counter(x['category_id'] for x in annotations)
    assert set(kinds) == {1, 3, 13}
    assert min(kinds.values()) >= len(images) / 3
    assert any(x['area'] < 100 for x in annotations)
    crowds = [x for x in annotations if x['iscrowd']]
    assert crowds
    assert {type(x['segmentation']) for x in crowds} == {dict}
    if split == 'train2017':  # other objects cut some into parts
        parts = [x['segmentation'] for x in annotations if not x['iscrowd']]
        assert max(map(len, parts)) > 1
    for annotation in annotations:
        mask = api.annToMask(annotation)
        assert mask.shape == (64, 96)
        area, (x, y, w, h) = annotation['area'], annotation['bbox']
        if annotation['iscrowd']:
            assert mask.sum() == area
        assert mask.sum() == pytest.approx(area, rel=0.1)
        # The box fits the mask to a pixel.
        rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
        edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert np.abs(np.subtract(edges, (x, y, x + w, y + h))).max() <= 1


@pytest.mark.parametrize('mask', [[[0, 0], [1, 1]], [[1, 0], [1, 0]]])
def test_run_lengths_count_along_columns(mask):
    mask = np.array(mask, bool)
    runs = coco.rle(mask)
    values = np.arange(len(runs['counts'])) % 2
    flat = np.repeat(values, runs['counts'])
    np.testing.assert_array_equal(flat.reshape(2, 2, order='F'), mask)
    assert runs['size'] == [2, 2]


def test_mmdetection_reads_the_coco_mini(mini_root):
    cfg = load_config(DET)
    apply_mini(cfg, str(mini_root))
    importlib.import_module('mmdet.datasets')
    init_default_scope('mmdet')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == COCO.images  # without the empty ones
    labels, ignored = set(), 0
    for i in range(len(dataset)):
        sample = dataset[i]['data_samples']
        labels |= set(sample.gt_instances.labels.tolist())
        ignored += len(sample.ignored_instances)
        assert sample.img_shape == (64, 96)
    # Indices among the 80 classes of person, car and stop sign.
    assert labels == {0, 2, 11}
    assert ignored > 0
    assert len(DATASETS.build(cfg.val_dataloader.dataset)) == 24


def test_imagenet_mini_has_the_layout_of_imagenet(mini_root):
    cfg = load_config(CLS)
    apply_mini(cfg, str(mini_root))
    importlib.import_module('mmpretrain.datasets')
    init_default_scope('mmpretrain')
    names = {301: 'ladybug', 327: 'starfish', 340: 'zebra',
             918: 'crossword', 920: 'traffic light', 948: 'Granny Smith',
             950: 'orange', 954: 'banana'}  # fmt: skip
    for split, count in imagenet.SPLITS.items():
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        kinds = Counter(dataset.get_gt_labels().tolist())
        assert kinds == dict.fromkeys(names, count)
        for label, name in names.items():
            assert dataset.metainfo['classes'][label].startswith(name)
        sample = dataset[0]
        assert sample['inputs'].shape == (3, 64, 64)
    pictures = {
        p.read_bytes() for p in (mini_root / IMAGENET.folder).rglob('*.JPEG')
    }
    assert len(pictures) == 8 * sum(imagenet.SPLITS.values())
    assert IMAGENET.images == 8 * imagenet.SPLITS['train']
    train = mini_root / IMAGENET.folder / 'train'
    assert (train / 'n02391049/n02391049_1.JPEG').is_file()


def test_miniatures_are_deterministic(mini_root, tmp_path):
    for mini in MINIATURES.values():
        again = prepare(mini, str(tmp_path))
        assert digest(again) == digest(mini_root / mini.folder)


def test_interrupted_miniature_is_written_again(tmp_path):
    calls = []

    def write(folder):
        calls.append(folder)
        (folder / 'half').touch()
        if len(calls) == 1:
            raise KeyboardInterrupt

    mini = replace(ADE, folder='x', write=write)
    with pytest.raises(KeyboardInterrupt):
        prepare(mini, str(tmp_path))
    assert os.listdir(tmp_path) == []
    assert prepare(mini, str(tmp_path)) == tmp_path / 'x'
    assert prepare(mini, str(tmp_path)) == tmp_path / 'x'
    assert len(calls) == 2


def test_mini_changes_only_data_size_and_schedule(mini_root):
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


def test_mini_shortens_a_schedule_of_epochs(mini_root):
    plain, cfg = load_config(DET), load_config(DET)
    apply_mini(cfg, str(mini_root))
    folder = str(mini_root / COCO.folder)
    assert cfg.train_dataloader.dataset.data_root == folder
    assert cfg.val_evaluator.ann_file == (
        f'{folder}/annotations/instances_val2017.json'
    )
    assert cfg.model == plain.model
    assert cfg.optim_wrapper == plain.optim_wrapper
    assert cfg.train_cfg.max_epochs == cfg.train_cfg.val_interval == 2
    warm_up, steps = cfg.param_scheduler
    # The same share as 500 of 88,000 iterations would be one iteration; a
    # warm-up needs two.
    assert (warm_up['begin'], warm_up['end']) == (0, 2)
    assert (steps['end'], steps['milestones']) == (2, [1, 2])
    for loader in ('train_dataloader', 'val_dataloader'):
        pipelines = [c[loader].dataset.pipeline for c in (cfg, plain)]
        for step, old in zip(*pipelines, strict=True):
            if step.type == 'Resize':
                assert step.pop('scale') == COCO.scale
                assert old.pop('scale') == (1333, 800)
            assert step == old


def test_mini_scales_rate_and_average_of_a_classifier(mini_root):
    plain, cfg = load_config(CLS), load_config(CLS)
    apply_mini(cfg, str(mini_root))
    assert cfg.model == plain.model
    assert cfg.train_cfg.max_epochs == IMAGENET.max_epochs == 20
    crop = cfg.train_dataloader.dataset.pipeline[1]
    resize, centre = cfg.val_dataloader.dataset.pipeline[1:3]
    assert (crop.scale, resize.scale, centre.crop_size) == (64, 73, 64)
    # Scaled once, by the square root of 16 / 2048.
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(4e-3 / 128**0.5)
    assert cfg.auto_scale_lr.base_batch_size == IMAGENET.batch_size
    # The average spans the same share of the training.
    steps = 300 * 1_281_167 / 2048
    (ema,) = cfg.custom_hooks
    assert 1 / ema.momentum / 320 == pytest.approx(5000 / steps)
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up['end'], cosine['end']) == (2, 20)


def test_mini_replaces_only_a_teacher_to_download(mini_root):
    distilled = CLS.replace('_in1k', '_distill_in1k')
    cfg = load_config(distilled)
    apply_mini(cfg, str(mini_root))
    assert cfg.model.teacher.checkpoint == 'random'
    assert cfg.model.teacher.size is None
    own = dict(model='timm:resnet18', checkpoint='own.pth')
    cfg = load_config(distilled)
    cfg.model.teacher = dict(own)
    apply_mini(cfg, str(mini_root))
    assert cfg.model.teacher == own


def test_mini_shortens_stock_schedules_of_epochs(mini_root):
    cfg = load_config('mmpretrain::convnext/convnext-tiny_32xb128_in1k.py')
    apply_mini(cfg, str(mini_root))
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up['end'], cosine['begin']) == (2, 2)
    assert 0 < cfg.custom_hooks[0].momentum <= 0.5
    cfg = load_config('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py')
    apply_mini(cfg, str(mini_root))
    assert cfg.train_cfg.max_epochs == 2


def test_mini_keeps_a_range_of_sizes_a_range(mini_root):
    cfg = load_config('mmdet::yolo/yolov3_d53_8xb8-ms-608-273e_coco.py')
    apply_mini(cfg, str(mini_root))
    (step,) = (
        x
        for x in cfg.train_dataloader.dataset.pipeline
        if x.type == 'RandomResize'
    )
    assert step.scale == [COCO.scale, COCO.scale]


def test_mini_refuses_other_data_sets():
    cfg = load_config('mmseg::fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py')
    with pytest.raises(ConfigError, match='PascalVOCDataset.*ADE20KDataset'):
        apply_mini(cfg)


def test_missing_folder_is_named_with_the_remedy(tmp_path):
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
    cfg = load_config(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        dict(data_root=str(tmp_path) + '/'),
    )
    with pytest.raises(DataError, match=r'train2017 does not exist'):
        check_data_exists(cfg, loaders)


def test_missing_imagenet_is_named_with_the_remedy(tmp_path):
    roots = {
        f'{x}_dataloader.dataset.data_root': str(tmp_path / 'imagenet')
        for x in ('train', 'val')
    }
    cfg = load_config(CLS, roots)
    with pytest.raises(DataError, match=r'imagenet does not exist.*--mini'):
        check_data_exists(cfg, ('train_dataloader',))
    (tmp_path / 'imagenet/train/n01440764').mkdir(parents=True)
    check_data_exists(cfg, ('train_dataloader',))
    with pytest.raises(DataError, match=r'imagenet/val does not exist'):
        check_data_exists(cfg, ('val_dataloader',))


@pytest.fixture
def dataset(mini_root):
    from mmefficientmod.config.toolbox import import_toolbox

    import_toolbox('mmseg')
    from mmseg.registry import DATASETS

    cfg = load_config(CONFIG)
    apply_mini(cfg, str(mini_root))
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    name_file_on_error(dataset)
    return dataset


def test_check_passes_good_data(dataset):
    before = repr(dataset.pipeline)
    channels, *size = dataset[0]['inputs'].shape
    assert channels == 3
    assert 0 < max(size) <= max(ADE.crop_size)
    name_file_on_error(dataset)  # a second call changes nothing
    assert repr(dataset.pipeline) == before
    assert isinstance(dataset.pipeline, Compose)


@pytest.mark.parametrize('wrap', ['RepeatDataset', 'ConcatDataset'])
def test_check_applies_to_wrapped_data_sets(dataset, wrap):
    from mmengine import dataset as wrappers

    dataset.pipeline.transforms = [
        t.transform for t in dataset.pipeline.transforms
    ]
    inner = dict(RepeatDataset=(dataset, 2), ConcatDataset=([dataset],))[wrap]
    name_file_on_error(getattr(wrappers, wrap)(*inner))
    info = dataset.get_data_info(0)
    with pytest.raises(DataError, match='nowhere'):
        dataset.pipeline({**info, 'img_path': '/nowhere.jpg'})


@pytest.mark.parametrize(
    ('break_it', 'message'),
    [
        (dict(img_path=b'no image'), 'LoadImageFromFile failed on .*bad'),
        (dict(img_path=None), 'bad.*FileNotFound'),
        (dict(seg_map_path=b'no image'), 'LoadAnnotations failed on .*bad'),
        (dict(seg_map_path=np.full((96, 128), 151, np.uint8)), 'label 151'),
        (dict(seg_map_path=np.full((96, 128), 254, np.uint8)), 'label 254'),
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


def test_check_passes_labels_0_to_150_and_255(dataset, tmp_path):
    info = dataset.get_data_info(0)
    labels = np.zeros((96, 128), np.uint8)
    labels.flat[:151] = np.arange(151)
    labels.flat[151] = 255
    cv2.imwrite(str(tmp_path / 'good.png'), labels)
    out = dataset.pipeline(
        {**info, 'seg_map_path': str(tmp_path / 'good.png')}
    )
    assert out['data_samples'].gt_sem_seg.data.max() <= 255


def test_mini_works_with_classes_as_types_and_without_roots(mini_root):
    """Both occur in configs in pure Python."""
    from mmpretrain.datasets import ImageNet

    cfg = load_config(CLS)
    cfg.model.data_preprocessor = dict(mean=[1.0], style='')
    for loader in ('train', 'val', 'test'):
        dataset = cfg[f'{loader}_dataloader'].dataset
        dataset.type = ImageNet
        del dataset.data_root
    cfg.val_dataloader.dataset.data_root = ''
    apply_mini(cfg, str(mini_root))
    for loader in ('train', 'val', 'test'):
        dataset = cfg[f'{loader}_dataloader'].dataset
        assert dataset.data_root == str(mini_root / IMAGENET.folder)
    assert cfg.model.data_preprocessor.style == ''
    check_data_exists(cfg, ('train_dataloader', 'val_dataloader'))


def test_mini_seeds_a_config_without_a_seed(mini_root):
    for config, seed in (CLS, None), (CLS, 7), (CONFIG, 0):
        cfg = load_config(config)
        if config == CLS:
            cfg.randomness = dict(seed=seed, deterministic=False)
        apply_mini(cfg, str(mini_root))
        assert cfg.randomness.seed == (seed or 0)
