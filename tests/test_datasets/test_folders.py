"""Fine-tuning on a folder of images with a folder for each class."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch.testing import assert_close

from mmefficientmod import cli
from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.config.options import apply_options
from mmefficientmod.config.toolbox import import_toolbox
from mmefficientmod.datasets import DataError, fit_classes

CONFIG = 'mmefficientmod::cls/efficientmod_s_finetune_folder.py'
LOADERS = ('train_dataloader', 'val_dataloader')
COLOURS = dict(berry=(40, 40, 210), leaf=(40, 190, 40), sky=(220, 120, 30))
SMALL = [
    'data_root=mine',
    'train_dataloader.dataset.pipeline.1.scale=32',
    'test_pipeline.1.scale=32',
    'test_pipeline.2.crop_size=32',
    *(
        f'{loader}.dataset.pipeline.{option}'
        for loader in ('val_dataloader', 'test_dataloader')
        for option in ('1.scale=32', '2.crop_size=32')
    ),
    'train_dataloader.batch_size=8',
    *(
        f'{name}_dataloader.{option}'
        for name in ('train', 'val', 'test')
        for option in ('num_workers=0', 'persistent_workers=False')
    ),
    'randomness.seed=0',
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three classes that differ in colour, 16 and 8 images of each."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split, count in dict(train=16, val=8).items():
        for name, colour in COLOURS.items():
            place = Path('mine', split, name)
            place.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(90, 170, (40, 40, 3), dtype=np.uint8)
                centre = tuple(int(v) for v in rng.integers(17, 23, 2))
                radius = int(rng.integers(15, 20))
                cv2.circle(image, centre, radius, colour, -1)
                cv2.imwrite(str(place / f'{i}.jpg'), image)
    return Path('mine')


@pytest.mark.parametrize(
    ('epochs', 'least'), [(1, 0), pytest.param(16, 80, marks=pytest.mark.slow)]
)
def test_folder_of_images_is_trained_tested_and_drawn(
    tool, folder, capsys, epochs, least
):
    argv = [CONFIG, '--backbone', 'efficientmod_xxs']
    runner = tool('train').main(
        [*argv, '--work-dir', 'run', '--cfg-options', *SMALL]
        + ['optim_wrapper.optimizer.lr=2e-3', f'train_cfg.max_epochs={epochs}']
        + [f'train_cfg.val_interval={epochs}']
    )
    printed = capsys.readouterr().out
    assert '3 classes: berry, leaf, sky' in printed
    assert 'The backbone starts from random weights: give it' in printed
    assert runner.model.head.fc.out_features == 3
    reached = runner.message_hub.get_scalar('val/accuracy/top1').current()
    assert reached >= least

    last = Path('run/last_checkpoint').read_text()
    test = [*argv, last, '--work-dir', 'run', '--cfg-options', *SMALL]
    metrics = tool('test').main(test)
    assert metrics.keys() == {'accuracy/top1'}
    assert metrics['accuracy/top1'] == pytest.approx(reached)

    # With other classes, the model would predict wrong names.
    (folder / 'val/berry').rename(folder / 'val/xberry')
    with pytest.raises(SystemExit):
        cli.run(lambda _: tool('test').main(test))
    message = capsys.readouterr().err
    assert 'trained on the classes berry, leaf, sky, and the data' in message

    # The classes come from the checkpoint, not from the folders.
    image = str(next((folder / 'train/leaf').iterdir()).resolve())
    shutil.rmtree(folder / 'val')
    options = ['--cfg-options', *SMALL]
    (drawn,) = tool('predict').main([*argv, last, image, *options])
    assert cv2.imread(str(drawn)) is not None
    args = tool('predict').parse_args([*argv, last, image, *options])
    cfg = cli.load_chosen_config(args)
    apply_options(cfg, args.cfg_options)
    inferencer = tool('predict').build_inferencer(cfg, last)
    name = inferencer(image)[0]['pred_class']
    assert name == 'leaf' if least else name in COLOURS


@pytest.mark.parametrize(
    ('name', 'classes'),
    [
        ('efficientmod_s_finetune_folder', 8),
        ('efficientmod_xxs_100e_in1k', 1000),
        *(
            pytest.param(
                f'efficientmod_{v}_100e_in1k', 1000, marks=pytest.mark.slow
            )
            for v in ('xs', 's', 's_conv')
        ),
    ],
)
def test_classification_configs_train_on_the_miniature(
    tool, mini_place, name, classes
):
    config = f'mmefficientmod::cls/{name}.py'
    options = ['train_cfg.max_epochs=1', 'train_dataloader.batch_size=2']
    options += [
        f'{split}_dataloader.dataset.indices=4' for split in ('train', 'val')
    ]
    runner = tool('train').main([config, '--mini', '--cfg-options', *options])
    assert runner.iter == 2
    assert runner.model.head.fc.out_features == classes


def test_pretrained_weights_are_loaded_without_their_head(
    tool, folder, capsys
):
    import_toolbox('mmpretrain')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        trained = MODELS.build(
            load_config('mmefficientmod::cls/efficientmod_xxs_in1k.py').model
        )
    torch.save(dict(state_dict=trained.state_dict()), 'in1k.pth')
    argv = [CONFIG, '--backbone', 'efficientmod_xxs']
    options = [*SMALL, 'optim_wrapper.optimizer.lr=0', 'train_cfg.max_iters=1']
    runner = tool('train').main(
        [*argv, '--pretrained', 'in1k.pth', '--cfg-options', *options]
    )
    assert 'random weights' not in capsys.readouterr().out
    assert_close(
        dict(runner.model.backbone.state_dict()),
        dict(trained.backbone.state_dict()),
    )
    assert runner.model.head.fc.out_features == 3


def test_number_of_classes_is_set_everywhere(folder):
    cfg = load_config(CONFIG, dict(data_root=str(folder)))
    assert cfg.model.head.num_classes == 1000
    assert fit_classes(cfg, LOADERS) == ['berry', 'leaf', 'sky']
    assert cfg.model.head.num_classes == 3
    assert cfg.data_preprocessor.num_classes == 3
    assert cfg.val_evaluator.topk == cfg.test_evaluator.topk == [1]
    names = ['a', 'b', 'c']
    cfg.train_dataloader.dataset.metainfo = dict(classes=names)
    assert fit_classes(cfg, LOADERS) == names


def test_config_of_another_data_set_does_not_change():
    cfg = load_config('mmefficientmod::cls/efficientmod_s_in1k.py')
    before = cfg.to_dict()
    assert fit_classes(cfg, LOADERS) is None
    assert cfg.to_dict() == before


@pytest.mark.parametrize(
    ('remove', 'add', 'message'),
    [
        ('val', (), r'mine.val does not exist\. It should have one folder'),
        ('train/sky', (), r'same classes, but sky is in mine.val only'),
        (
            'val/sky',
            ('val/moon/1.png',),
            'sky is in mine.train only and moon is in mine.val only',
        ),
        ('train/sky', ('train/sky/notes.txt',), r'train.sky has no images'),
        ('train', ('train/1.jpg',), 'class folders in .*train is 0'),
    ],
)
def test_bad_folders_are_refused_with_the_reason(
    tool, folder, remove, add, message
):
    shutil.rmtree(folder / remove)
    for name in add:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    argv = [CONFIG, '--cfg-options', f'data_root={folder}']
    with pytest.raises(DataError, match=message):
        tool('train').main(argv)


def test_head_without_num_classes_is_refused(folder):
    cfg = load_config(CONFIG, dict(data_root=str(folder)))
    cfg.model.head = dict(type='ClsHead')
    with pytest.raises(ConfigError, match='ClsHead has no num_classes'):
        fit_classes(cfg, LOADERS)
