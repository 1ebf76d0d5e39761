"""The command lines, on the miniature: their results and their errors."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from helpers import ROOT
from mmengine.logging import MMLogger
from torch.testing import assert_close

from mmefficientmod import EfficientMod, cli
from mmefficientmod.apis.inference import build_inferencer
from mmefficientmod.apis.predicting import predict_files
from mmefficientmod.datasets import DataError
from mmefficientmod.models.backbones import efficientmod
from mmefficientmod.models.layers import matmul

CONFIG = 'mmefficientmod::seg/fpn_efficientmod_xxs_ade20k.py'
# Two steps of two images, and validation on what there is.
SHORT = ['train_cfg.max_iters=2', 'train_dataloader.batch_size=2']


@pytest.fixture
def workplace(tmp_path, mini_root, monkeypatch):
    """An empty working directory with some images of the miniatures."""
    monkeypatch.chdir(tmp_path)
    for source in mini_root.glob('ade20k*'):
        for path in source.rglob('*'):
            if path.is_file() and int(path.stem[-2:]) < 4:
                target = tmp_path / 'data/mini' / path.relative_to(mini_root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
    for name in ('coco', 'imagenet'):
        (source,) = mini_root.glob(f'{name}-*')
        shutil.copytree(source, tmp_path / 'data/mini' / source.name)
    return tmp_path


@pytest.fixture
def train(tool, workplace):
    def run(*argv, config=CONFIG, options=()):
        tool('train').main(
            [config, '--mini', *argv, '--cfg-options', *SHORT, *options]
        )
        return workplace / 'work_dirs' / f'{Path(config).stem}_mini'

    return run


@pytest.fixture
def checkpoint(train, workplace, tmp_path_factory):
    """The checkpoint of a short training, which all tests share."""
    kept = tmp_path_factory.getbasetemp() / 'short.pth'
    if not kept.is_file():
        shutil.copy(train() / 'iter_2.pth', kept)
    return str(shutil.copy(kept, workplace / 'iter_2.pth'))


def fails(main, argv, capsys):
    """The message on stderr of a tool that ends with a user error."""
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda _: main(argv))
    assert stop.value.code == 2
    before, error, message = capsys.readouterr().err.partition('error: ')
    assert error
    assert 'Traceback' not in message
    # All lines after the first are of a list of mistakes.
    lines = message.strip().splitlines()[1:]
    assert all(re.match(r'  \d+\. ', line) for line in lines)
    return error + message.strip()


def test_segmentation_is_trained_tested_and_drawn(
    train, tool, workplace, capsys
):
    work_dir = train()
    checkpoint = str(work_dir / 'iter_2.pth')
    metrics = tool('test').main(
        [CONFIG, checkpoint, '--mini', '--out', 'results']
    )
    assert 0 <= metrics['mIoU_present'] <= 100
    written = json.loads((workplace / 'results/metrics.json').read_text())
    assert written['metrics']['mIoU'] == metrics['mIoU']
    predictions = list((workplace / 'results/predictions').glob('*.png'))
    assert len(predictions) == 4
    labels = cv2.imread(str(predictions[0]), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (96, 128)
    assert labels.min() >= 1  # as in ADE20K's own files

    image = next(workplace.glob('data/mini/*/images/validation/*.jpg'))
    capsys.readouterr()
    drawn = tool('predict').main(
        [CONFIG, checkpoint, str(image), '--out', 'drawn']
        + ['--cfg-options', 'test_pipeline.1.scale=(384,96)']
    )
    assert len(drawn) == 1
    assert cv2.imread(str(drawn[0])).shape[1] >= 128
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == str(drawn[0])
    assert 'checkpoint' not in printed  # but for errors


def test_inference_from_python(checkpoint, workplace):
    images = sorted(workplace.glob('data/mini/ade*/images/*/*.jpg'))[:2]
    paths = [f'photo{suffix}' for suffix in ('.JPEG', '.bmp')]
    for image, path in zip(images, paths, strict=True):
        cv2.imwrite(path, cv2.imread(str(image)))
    inferencer = build_inferencer(CONFIG, checkpoint, device='cpu')
    result = inferencer(paths[0], return_datasamples=True)
    assert result.pred_sem_seg.data.shape == (1, 96, 128)
    drawn = predict_files(inferencer, paths, 'drawn')
    assert [path.name for path in drawn] == paths


# The smallest model, two images and one epoch.
FEW = [
    'train_cfg.max_epochs=1',
    'train_dataloader.dataset.indices=2',
    'val_dataloader.dataset.indices=2',
    'test_dataloader.dataset.indices=2',
]


def test_detection_is_trained_tested_and_drawn(tool, workplace, capsys):
    config = 'mmefficientmod::det/mask_rcnn_efficientmod_xxs_fpn_1x_coco.py'
    # An untrained model detects nothing above the usual threshold.
    options = ['--cfg-options', *FEW, 'model.test_cfg.rcnn.score_thr=0']
    options += ['model.test_cfg.rcnn.max_per_img=3']
    options += ['model.train_cfg.rcnn.sampler.num=32']
    runner = tool('train').main([config, '--mini', *options])
    assert runner.iter == 2
    work_dir = workplace / f'work_dirs/{Path(config).stem}_mini'
    checkpoint = str(work_dir / 'epoch_1.pth')
    metrics = tool('test').main(
        [config, checkpoint, '--mini', '--out', 'results', *options]
    )
    assert {'coco/bbox_mAP_50', 'coco/segm_mAP_50'} <= metrics.keys()
    written = json.loads((workplace / 'results/metrics.json').read_text())
    assert written['metrics'] == metrics
    predictions = pickle.loads(
        (workplace / 'results/predictions/predictions.pkl').read_bytes()
    )
    assert len(predictions) == 2
    assert {'bboxes', 'scores', 'labels', 'masks'} <= predictions[0][
        'pred_instances'
    ].keys()

    image = next(workplace.glob('data/mini/coco-*/val2017/*.jpg'))
    argv = [config, checkpoint, str(image)]
    options = ['--cfg-options', 'scale=(96,64)']
    options += ['model.test_cfg.rcnn.score_thr=0']
    (drawn,) = tool('predict').main([*argv, '--out', 'drawn', *options])
    assert cv2.imread(str(drawn)).shape == (64, 96, 3)
    assert str(drawn) in capsys.readouterr().out
    unsure, _, objects = tool('predict').main(
        [*argv, '--out', 'unsure', '--score-thr', '0', '--save', 'both']
        + options
    )
    (found, *_) = json.loads(objects.read_text())
    assert found['segmentation']['size'] == [64, 96]
    assert (cv2.imread(str(unsure)) != cv2.imread(str(drawn))).any()


CONFIGS = sorted((ROOT / 'configs').glob('[!_]*/*.py'))
# Kinds of configs that no other test trains. All of them take minutes.
FAST = ('fpn_mobilevit_s_ade20k',)


@pytest.mark.parametrize(
    'path',
    [
        pytest.param(
            path,
            id=path.stem,
            marks=() if path.stem in FAST else pytest.mark.slow,
        )
        for path in CONFIGS
    ],
)
def test_every_config_is_trained(path, tool, mini_place):
    task = path.parent.name
    options = ['train_cfg.val_interval=9', 'train_dataloader.batch_size=2']
    if task == 'seg':
        options.append('train_cfg.max_iters=1')
    else:
        indices = 'train_dataloader.dataset.indices=2'
        options += [indices, 'train_cfg.max_epochs=1']
    if path.stem.startswith('mask_rcnn'):
        options.append('model.train_cfg.rcnn.sampler.num=32')
    config = f'mmefficientmod::{task}/{path.name}'
    runner = tool('train').main([config, '--mini', '--cfg-options', *options])
    assert runner.iter == 1
    # The optimizer has a state for each parameter that got a gradient.
    state = runner.optim_wrapper.optimizer.state
    for name, parameter in runner.model.backbone.named_parameters():
        assert parameter.isfinite().all(), name
        assert state.get(parameter), name


def test_classification_is_trained_tested_and_drawn(tool, workplace, capsys):
    config = 'mmefficientmod::cls/efficientmod_xxs_in1k.py'
    options = ['--cfg-options', *FEW, 'train_dataloader.batch_size=1']
    runner = tool('train').main([config, '--mini', *options])
    assert runner.iter == 2
    checkpoint = 'work_dirs/efficientmod_xxs_in1k_mini/epoch_1.pth'
    weights = torch.load(checkpoint, weights_only=False)
    assert 'ema_state_dict' in weights
    metrics = tool('test').main(
        [config, checkpoint, '--mini', '--out', 'results', *options]
    )
    assert metrics.keys() == {'accuracy/top1', 'accuracy/top5'}
    # The averaged weights, which the test takes, are folded as well.
    folded = tool('test').main(
        [config, checkpoint, '--mini', '--deploy', *options]
    )
    assert folded == metrics
    predictions = pickle.loads(
        (workplace / 'results/predictions/predictions.pkl').read_bytes()
    )
    assert [len(p['pred_score']) for p in predictions] == [1000, 1000]

    image = next(workplace.glob('data/mini/imagenet-*/val/*.JPEG'))
    (drawn,) = tool('predict').main(
        [config, checkpoint, str(image), '--out', 'new/drawn']
    )
    assert cv2.imread(str(drawn)) is not None
    assert str(drawn) in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'least'),
    [
        (
            'det/mask_rcnn_efficientmod_s_fpn_1x_coco.py',
            {'coco/bbox_mAP_50': 0.3, 'coco/segm_mAP_50': 0.3},
        ),
        ('cls/efficientmod_s_in1k.py', {'accuracy/top1': 60}),
    ],
)
def test_miniatures_are_learned(tool, workplace, name, least):
    """One and two processes reach the metrics of the last validation."""
    config = f'mmefficientmod::{name}'
    runner = tool('train').main([config, '--mini', '--work-dir', 'run'])
    last = Path('run/last_checkpoint').read_text()
    one = tool('test').main([config, last, '--mini'])
    for metric, value in least.items():
        reached = runner.message_hub.get_scalar(f'val/{metric}').current()
        assert reached > value, metric
        assert one[metric] == pytest.approx(reached, abs=1e-3), metric
    if not torch.cuda.is_available():
        subprocess.run(
            [ROOT / 'tools/dist_test.sh', config, last, '2', '--mini']
            + ['--out', 'two'],
            env={**os.environ, 'PYTHON': sys.executable},
            check=True,
        )
        two = json.loads(Path('two/metrics.json').read_text())['metrics']
        assert two == pytest.approx(one)


RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'


def test_swapped_config_is_trained_tested_and_resumed(tool, workplace, capsys):
    torch.save(EfficientMod('xxs').state_dict(), 'weights.pth')
    argv = [RETINANET, '--mini', '--backbone', 'efficientmod_xxs']
    weights = ['--pretrained', 'weights.pth']
    indices = 'train_dataloader.dataset.indices=2'
    everything = 'model.test_cfg.score_thr=0.0'
    options = ['--cfg-options', *FEW, indices, everything]
    runner = tool('train').main([*argv, *weights, *options])
    assert not runner.model.backbone.stem.proj.weight.requires_grad
    last = (
        workplace / 'work_dirs/retinanet_r50_fpn_1x_coco_efficientmod_xxs_mini'
        '/epoch_1.pth'
    )
    assert_close(
        torch.load(last, weights_only=False)['state_dict'][
            'backbone.stem.proj.weight'
        ],
        torch.load('weights.pth', weights_only=True)['stem.proj.weight'],
    )
    metrics = tool('test').main([argv[0], str(last), *argv[1:], *options])
    assert 'coco/bbox_mAP' in metrics
    resume = [*argv, '--resume', str(last)]
    with pytest.raises(SystemExit) as stop:
        tool('train').main([*resume, *weights, *options])
    assert stop.value.code is None
    assert 'nothing is left to do' in capsys.readouterr().out
    options += ['train_cfg.max_epochs=2']
    message = fails(tool('train').main, [*resume, *options], capsys)
    assert 'frozen_stages=1' in message
    again = tool('train').main([*resume, *weights, *options])
    assert again.epoch == 2


def test_unusable_weights_for_a_stock_backbone_are_refused(
    tool, workplace, capsys
):
    """Also for a detector inside another model."""
    Path('empty.pth').touch()
    torch.save({'state_dict': {'x': torch.ones(1)}}, 'other.pth')
    teacher = (
        'mmdet::soft_teacher/'
        'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py'
    )
    for config in RETINANET, teacher:
        for name, why in ('empty', 'is empty'), ('other', 'not fit'):
            argv = [config, '--pretrained', f'{name}.pth']
            assert why in fails(tool('train').main, argv, capsys)


def test_tta_changes_the_metrics(checkpoint, tool):
    options = ['--cfg-options', 'test_dataloader.dataset.indices=1']
    plain = tool('test').main([CONFIG, checkpoint, '--mini', *options])
    flipped = tool('test').main(
        [CONFIG, checkpoint, '--mini', '--tta', *options]
    )
    assert plain['aAcc'] != flipped['aAcc']


def test_deploy_keeps_the_metrics(checkpoint, tool, capsys):
    plain = tool('test').main([CONFIG, checkpoint, '--mini'])
    capsys.readouterr()
    folded = tool('test').main([CONFIG, checkpoint, '--mini', '--deploy'])
    assert 'folded for inference: backbone\n' in capsys.readouterr().out
    assert folded == pytest.approx(plain, abs=0.05)


@pytest.mark.slow
def test_library_of_products_keeps_the_metrics(
    checkpoint, tool, workplace, capsys
):
    image = str(next(workplace.glob('data/mini/ade*/images/*/*.jpg')))
    found = []
    for options in (
        ['--matmul', 'pytorch'],
        ['--matmul', 'onednn'],
        ['--matmul', 'onednn', '--fast-linear'],
    ):
        argv = [CONFIG, checkpoint, '--mini', *options]
        try:
            found.append(tool('test').main(argv))
            drawn = tool('predict').main(
                [CONFIG, checkpoint, image, '--device', 'cpu', *options]
            )
        finally:
            matmul.use_library(None)
        assert drawn
        text = capsys.readouterr().out
        assert 'matrix products on the CPU: oneDNN for ' in text
        # Those of the neck and the head.
        assert ('--fast-linear: 5 linear layers' in text) == (
            '--fast-linear' in options
        )
    assert found[1] == pytest.approx(found[0], abs=0.05)
    assert found[2] == pytest.approx(found[0], abs=0.05)


@pytest.mark.parametrize('named', [True, False])
def test_resume_refuses_another_variant(checkpoint, tool, capsys, named):
    other = CONFIG.replace('xxs', 'xs')
    argv = [other, '--mini', '--work-dir', 'run', '--resume']
    if named:
        argv.append(checkpoint)
    else:
        Path('run').mkdir()
        Path('run/last_checkpoint').write_text(checkpoint)
    message = fails(tool('train').main, argv, capsys)
    assert 'iter_2.pth does not fit' in message


def test_pretrained_weights_are_loaded(train, workplace):
    torch.manual_seed(5)
    backbone = EfficientMod('xxs')
    torch.save({'state_dict': backbone.state_dict()}, 'weights.pth')
    work_dir = train(
        '--pretrained',
        'weights.pth',
        options=['optim_wrapper.optimizer.lr=0.0'],
    )
    weights = torch.load(work_dir / 'iter_2.pth', weights_only=False)
    assert_close(
        weights['state_dict']['backbone.stem.proj.weight'],
        backbone.stem.proj.weight.detach(),
    )


def test_terminal_shows_little_but_progress(workplace):
    run = subprocess.run(
        [sys.executable, ROOT / 'tools/train.py', CONFIG, '--mini']
        + ['--cfg-options', *SHORT, 'default_hooks.logger.interval=1'],
        capture_output=True,
        text=True,
        cwd=workplace,
    )
    assert run.returncode == 0, run.stderr
    lines = (run.stdout + run.stderr).splitlines()
    assert any('Iter(train) [2/2]' in x and 'eta' in x for x in lines)
    noise = ('Warning', 'warn(', 'deprecated', 'OneDL', 'Traceback')
    noise += ('SyncBatchNorm',)
    assert not [x for x in lines if any(n in x for n in noise)]
    # Without the table of classes: an untrained model predicts many.
    few = [x for x in lines if not x.startswith(('|', '+'))]
    assert len(few) < 30, run.stdout + run.stderr


def test_missing_data_is_a_user_error(tool, workplace, capsys):
    message = fails(tool('train').main, [CONFIG], capsys)
    assert 'data/ade/ADEChallengeData2016 does not exist' in message
    assert '--mini' in message
    assert not (workplace / 'work_dirs').exists()


@pytest.mark.parametrize(
    'workers', [0, pytest.param(1, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('kind', ['images', 'annotations'])
def test_broken_file_is_named(tool, workplace, capsys, kind, workers):
    for path in workplace.glob(f'data/mini/*/{kind}/training/*'):
        path.write_bytes(b'broken')
    argv = [CONFIG, '--mini', '--cfg-options', *SHORT]
    argv.append(f'train_dataloader.num_workers={workers}')
    message = fails(tool('train').main, argv, capsys)
    assert f'{kind}/training/ADE_mini' in message
    assert not list(workplace.glob('work_dirs/*'))


def test_file_with_a_label_out_of_range_is_named(tool, workplace, capsys):
    for path in workplace.glob('data/mini/*/annotations/training/*'):
        cv2.imwrite(str(path), cv2.imread(str(path), -1) + 180)
    argv = [CONFIG, '--mini', '--cfg-options', *SHORT]
    message = fails(tool('train').main, argv, capsys)
    assert 'annotations/training/ADE_mini' in message
    assert '1 to 150' in message


def test_checkpoint_of_another_variant_is_refused(
    checkpoint, tool, workplace, capsys
):
    other = CONFIG.replace('xxs', 'xs')
    image = str(next(workplace.rglob('*.jpg')))
    before = sorted(workplace.glob('work_dirs/*'))
    for name, extra in (('test', ['--mini']), ('predict', [image])):
        message = fails(tool(name).main, [other, checkpoint, *extra], capsys)
        assert 'iter_2.pth does not fit' in message
        assert 'backbone.' in message
    assert sorted(workplace.glob('work_dirs/*')) == before


@pytest.mark.parametrize(
    ('name', 'argv', 'message'),
    [
        ('train', ['no/such.py'], 'no/such.py does not exist'),
        ('train', [CONFIG, '--mini', '--amp'], '--amp needs a GPU'),
        ('test', [CONFIG, 'x', '--mini', '--amp'], '--amp needs a GPU'),
        (
            'train',
            [CONFIG, '--mini', '--launcher', 'slurm'],
            '--launcher slurm needs GPUs',
        ),
        (
            'train',
            [CONFIG, '--mini', '--launcher', 'pytorch'],
            '--launcher pytorch is for processes that torchrun started',
        ),
        (
            'train',
            [CONFIG, '--mini', '--pretrained', 'no.pth'],
            'no.pth does not exist',
        ),
        (
            'train',
            [CONFIG, '--mini', '--cfg-options', 'model.backbone.arch=m'],
            "no arch 'm'; the variants are xxs, xs, s, s_conv",
        ),
        (
            'train',
            [CONFIG, '--mini', '--cfg-options', 'model.backbone.depth=5'],
            "unexpected keyword argument 'depth'",
        ),
        (
            'train',
            [CONFIG, '--mini', '--cfg-options', 'model.backbone.type=Mod'],
            'error: Mod is not in the mmseg::model registry',
        ),
        (
            'train',
            [CONFIG, '--mini', '--cfg-options']
            + ['train_dataloader.sampler.type=Mod'],
            'error: Mod is not in the mmseg::data sampler registry',
        ),
        (
            'train',
            [CONFIG, '--mini', '--resume', 'no.pth'],
            'no.pth does not exist',
        ),
        ('test', [CONFIG, 'no.pth', '--mini'], 'no.pth does not exist'),
        ('predict', [CONFIG, 'no.pth', 'x.jpg'], 'no.pth does not exist'),
        (
            'predict',
            [CONFIG, 'no.pth', 'x.jpg', '--score-thr', '0.1'],
            '--score-thr is for detectors',
        ),
        (
            'predict',
            [CONFIG, 'no.pth', 'x.jpg', '--save', 'json'],
            'whose predictions are written by --save png',
        ),
        (
            'predict',
            [CONFIG, 'no.pth', 'x.jpg', '--batch-size', '0'],
            '--batch-size must be 1 or more',
        ),
    ],
)
def test_user_error_is_one_sentence(
    tool, workplace, capsys, name, argv, message
):
    if torch.cuda.is_available() and 'GPU' in message:
        pytest.skip('there is a GPU')
    assert message in fails(tool(name).main, argv, capsys)
    assert not list(workplace.glob('work_dirs/*'))


def test_predict_refuses_a_file_that_is_no_image(tool, workplace, capsys):
    Path('w.pth').write_text('weights')
    Path('x.jpg').write_text('text')
    message = fails(tool('predict').main, [CONFIG, 'w.pth', 'x.jpg'], capsys)
    assert 'x.jpg is no image' in message


@pytest.mark.parametrize('flag', ['--traceback', '--trace'])
def test_traceback_of_a_user_error_is_shown_on_request(
    tool, workplace, capsys, monkeypatch, flag
):
    monkeypatch.setattr(sys, 'argv', ['train.py', 'no/such.py', flag])
    with pytest.raises(SystemExit) as stop:
        cli.run(tool('train').main)
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith('Traceback')
    assert 'in find_config' in printed
    assert (
        printed.splitlines()[-1] == 'error: config no/such.py does not exist'
    )


def test_bugs_of_a_model_keep_their_traceback(tool, workplace, monkeypatch):
    """A wrong value refused by a constructor is the only user error there."""
    argv = [CONFIG, '--mini', '--cfg-options', *SHORT]

    def broken(*args, **kwargs):
        raise error('a bug')

    for method, error in (
        ('__init__', TypeError),
        ('__init__', KeyError),
        ('forward', ValueError),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(efficientmod.EfficientMod, method, broken)
            with pytest.raises(error, match='a bug'):
                cli.run(lambda _: tool('train').main(argv))
    # The log of a run with a bug is kept.
    assert list(workplace.glob('work_dirs/*/*/*.log'))


def test_interrupted_tool_exits_with_130():
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    assert stop.value.code == 130


def fail_in(work_dir, meanwhile=lambda: None):
    """A run that fails after it has made its log."""

    def run():
        logs = work_dir / '1'
        logs.mkdir(parents=True)
        MMLogger.get_instance(f'of {work_dir}', log_file=logs / 'own.log')
        (work_dir / 'config.py').touch()
        meanwhile()
        raise DataError('x')

    with cli.remove_if_failed(str(work_dir)):
        run()


def test_failed_run_removes_its_work_dir_and_no_log_of_another(tmp_path):
    others = MMLogger.get_instance('others', log_file=tmp_path / 'others.log')
    with pytest.raises(DataError):
        fail_in(tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
    others.error('still logged')
    assert 'still logged' in (tmp_path / 'others.log').read_text()


def test_failed_run_leaves_a_run_that_started_in_its_work_dir(tmp_path):
    log = tmp_path / 'run/2/other.log'

    def start_another():
        log.parent.mkdir()
        log.touch()

    with pytest.raises(DataError):
        fail_in(tmp_path / 'run', start_another)
    assert log.exists()
    assert (tmp_path / 'run/config.py').exists()
    assert not (tmp_path / 'run/1').exists()


def test_new_run_replaces_another_only_if_it_is_told_to(train, tool, capsys):
    folder = train()
    argv = [CONFIG, '--mini', '--cfg-options', *SHORT]
    before = (folder / 'iter_2.pth').read_bytes()
    message = fails(tool('train').main, argv, capsys)
    assert '--resume, replace it with --overwrite, or choose' in message
    assert (folder / 'iter_2.pth').read_bytes() == before
    shutil.copy(folder / 'iter_2.pth', folder / 'iter_900.pth')
    train('--overwrite')
    assert [x.name for x in folder.glob('*.pth')] == ['iter_2.pth']


TOOLS = sorted(path.stem for path in (ROOT / 'tools').glob('*.py'))


@pytest.mark.parametrize('name', TOOLS)
def test_every_tool_has_the_option_traceback(tool, name, capsys, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    with pytest.raises(SystemExit) as stop:
        tool(name).main(['--help'])
    assert stop.value.code == 0
    assert '--traceback' in capsys.readouterr().out


@pytest.mark.parametrize('name', ['train', 'test', 'predict'])
def test_unknown_option_is_refused(tool, name):
    with pytest.raises(SystemExit) as stop:
        tool(name).main([CONFIG, '--no-such-flag'])
    assert stop.value.code == 2


def test_table_of_distillation_has_the_epochs_of_all_runs(
    tool, tmp_path, capsys
):
    """A kept run may have been evaluated after other epochs."""
    kept = dict(teacher=(4, 8), plain_0=(2, 4, 6, 8), distilled_0=(4, 8))
    for name, epochs in kept.items():
        folder = tmp_path / name / 'run/vis_data'
        folder.mkdir(parents=True)
        lines = [
            json.dumps({'step': epoch, 'accuracy/top1': 10 * epoch})
            for epoch in epochs
        ]
        (folder / 'scalars.json').write_text('\n'.join(lines))
        (tmp_path / name / 'last_checkpoint').touch()
    tool('dev/distill').main(['--seeds', '0', '--work-dir', str(tmp_path)])
    printed = capsys.readouterr().out
    assert '| top-1 after epoch | 4 | 8 |' in printed
    assert '| plain, mean | 40.0 | 80.0 |' in printed
