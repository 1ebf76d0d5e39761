"""Trainings side by side: each is a process of its own, on the miniature."""

import csv
import json
import re
from pathlib import Path

import cv2
import pytest
import torch

from mmefficientmod import cli
from mmefficientmod.analysis.memory import saved_bytes
from mmefficientmod.benchmark.cases import BenchmarkCase
from mmefficientmod.benchmark.model_specs import parse_model_spec
from mmefficientmod.benchmark.training import report as training_report
from mmefficientmod.benchmark.training import runs as training
from mmefficientmod.benchmark.training.runs import Recipe, Run
from mmefficientmod.benchmark.workloads import prepare
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.swap.names import BACKBONES

# It reaches the process that trains, and fails there.
BROKEN = "dict(type='mmefficientmod.EfficientMod', arch='xxs', width_factor=3)"
SHORT = ['--on', 'mini', '--seeds', '0', '--crop', '32', '--threads', '1']


@pytest.fixture
def few_place(mini_place):
    """A working directory with a miniature of very few images."""
    (whole,) = (mini_place / 'data/mini').resolve().glob('ade20k-*')
    (mini_place / 'data/mini').unlink()
    for path in whole.rglob('*'):
        if path.is_file() and int(path.stem[-2:]) < 2:
            target = mini_place / 'data/mini' / whole.name
            target = target / path.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return mini_place


@pytest.fixture
def run(tool, few_place):
    def main(*argv):
        return tool('compare').main([*argv, *SHORT, '--out', 'out'])

    return main


# Stands in for tools/train.py: the log of one iteration.
LOGS_A_TRAINING = """
import json, os, sys, time
place = f'{sys.argv[-1]}/{time.time_ns()}/vis_data'
os.makedirs(place)
with open(f'{place}/scalars.json', 'w') as file:
    print(json.dumps(dict(params=1, loss=2.0, time=3.0)), file=file)
    print(json.dumps(dict(mIoU_present=4.0, step=1)), file=file)
"""


def contents(folder):
    """Every file of the runs, and when it was written."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob('*')
        if path.is_file()
    }


def benchmarked(model):
    """The bytes of a training step by the benchmark's measure."""
    built = parse_model_spec(model, training.CONFIG).build()
    image = torch.rand(2, 3, 32, 32)
    work = prepare(built, BenchmarkCase('train', 2, 32, 32, 'fp32', 1), image)
    return saved_bytes(work.forward, [*built.parameters(), image])


def test_runs_are_made_once_and_failures_are_rows(run, few_place, capsys):
    ours, broken = run('efficientmod-xxs', BROKEN, '--iters', '2')
    shown = capsys.readouterr().out
    check_finished(ours)
    assert ours.model == 'efficientmod_xxs'
    # Of the whole segmentor, as the model index has it.
    assert ours.params == 8606134
    assert ours.memory == pytest.approx(benchmarked(ours.model), rel=0.02)
    assert not broken.finished
    assert 'width_factor' in broken.error
    assert re.search(r'efficientmod_xxs +\d+\.\d\d', shown)
    assert 'nothing about ADE20K' in shown
    assert f'{broken.model}, seed 0: failed, ' in shown.replace('\n', ' ')

    out = few_place / 'out'
    written = json.loads((out / 'results.json').read_text())
    assert [row['seeds'] for row in written['rows']] == ['0', None]
    with (out / 'results.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert 'width_factor' in rows[1]['error']
    assert rows[0]['cpu'] == written['machine']['cpu']
    text = (out / 'results.md').read_text()
    assert written['machine']['cpu'] in text
    assert 'nothing about ADE20K' in text
    assert cv2.imread(str(out / 'curves.png')) is not None
    # Weights would fill the disk.
    assert not list(out.rglob('*.pth'))

    # What is finished is not made again.
    kept = contents(out / 'efficientmod_xxs')
    assert run('efficientmod_xxs', '--iters', '2') == [ours]
    assert contents(out / 'efficientmod_xxs') == kept


def check_finished(run):
    assert run.finished
    assert run.error is None
    assert len(run.times) == len(run.losses) == 2
    assert list(run.miou) == [1, 2]
    assert 0 <= run.final_miou <= 100
    assert run.seconds > 0


@pytest.mark.parametrize('change', ['arguments', 'source', 'threads'])
def test_what_is_made_otherwise_is_made_again(tmp_path, change):
    script = tmp_path / 'train.py'
    script.write_text(LOGS_A_TRAINING)
    made = dict(arguments=['a'], source='b', threads=1, machine={})
    run = Run('some', 0, made)
    training.train(run, tmp_path, script, print)
    assert training.find(Run('some', 0, made), tmp_path) == run
    other = Run('some', 0, made | {change: made[change] * 2})
    assert training.find(other, tmp_path) is None
    training.train(other, tmp_path, script, print)
    assert len(other.times) == 1  # nothing is left of the one before
    assert training.find(Run('some', 0, made), tmp_path) is None
    assert training.find(Run('some', 1, made), tmp_path) is None


def test_ctrl_c_leaves_what_is_there(run, few_place, monkeypatch, capsys):
    asked = []

    def train(made, out, script, progress):
        asked.append(made.model)
        if len(asked) == 2:
            raise KeyboardInterrupt
        fill(made).save(training.folder_of(made, out))

    monkeypatch.setattr(training, 'train', train)
    argv = ['mobilenetv2_100', 'resnet18', 'pvt_v2_b0', '--iters', '2']
    with pytest.raises(KeyboardInterrupt):
        run(*argv)
    assert re.search(r'mobilenetv2_100 +40\.00', capsys.readouterr().out)
    text = (few_place / 'out/results.md').read_text()
    assert '| mobilenetv2_100 | 40.00 |' in text
    assert 'resnet18' not in text
    assert [x.finished for x in run(*argv)] == [True] * 3
    assert asked == ['mobilenetv2_100', 'resnet18', 'resnet18', 'pvt_v2_b0']


def test_a_run_that_is_stopped_takes_its_process_along(few_place):
    script = few_place / 'train.py'
    script.write_text(
        'import os, time\n'
        "open('pid', 'w').write(str(os.getpid()))\n"
        "print('Iter(train) [ 1/4]', flush=True)\n"
        'time.sleep(60)\n'
    )
    shares = []

    def stop(share):
        shares.append(share)
        raise KeyboardInterrupt

    planned = Run('some', 0, dict(arguments=[], threads=1))
    with pytest.raises(KeyboardInterrupt):
        training.train(planned, few_place, script, stop)
    assert shares == [0.25]
    pid = int(Path('pid').read_text())
    assert not Path(f'/proc/{pid}').exists()
    assert training.find(planned, few_place) is None


# ------------------------------------------------------------------ by hand


def fill(run, miou=40.0, time=0.5, memory=3e6):
    """A finished run, made up."""
    run.params, run.memory = 2_500_000, memory
    run.times = [9.0] * training.WARM_UP + [time] * (training.WARM_UP + 1)
    run.losses = [3.0, 1.0]
    run.miou = {1: miou / 2, 2: miou}
    run.finished = True
    return run


def test_table_values():
    runs = [
        fill(Run('a', 0, {}), 40, 0.5),
        fill(Run('b', 0, {}), 10),
        fill(Run('a', 1, {}), 44, 0.7, 5e6),
        Run('b', 1, {}, error='it broke'),
        fill(Run('a', 2, {}), 48, 0.6),
        Run('c', 0, {}, error='RuntimeError: no | luck'),
    ]
    assert training_report.run_cells(runs) == [
        ['model', 'mIoU', '±', 's/iter', 'MB', 'M params', 'seeds'],
        ['a', '44.00', '4.00', '0.600', '5.0', '2.50', '0 1 2'],
        ['b', '10.00', '', '0.500', '3.0', '2.50', '0'],
        ['c', '', '', '', '', '', ''],
    ]
    assert training_report.failures(runs) == [
        'b, seed 1: it broke',
        'c, seed 0: RuntimeError: no | luck',
    ]


def test_curves():
    runs = [
        fill(Run('a', 0, {}), 10),
        fill(Run('efficientmod_s', 0, {}), 40),
        fill(Run('efficientmod_s', 1, {}), 44),
    ]
    figure = training_report.curves(runs)
    miou, loss = figure.axes
    # The best is the first of the legend.
    assert [x.get_label() for x in miou.lines] == ['efficientmod_s', 'a']
    assert miou.lines[0].get_xydata().tolist() == [[1, 21], [2, 42]]
    low, high = miou.collections[0].get_paths()[0].get_extents().get_points()
    assert (low[1], high[1]) == (20, 44)
    assert loss.lines[0].get_xydata().tolist() == [[1, 3], [2, 1]]


def test_log_of_a_gpu_is_read(tmp_path):
    log = tmp_path / '20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    lines = [
        dict(params=7, step=0),
        dict(loss=2.0, time=0.4, iter=1, memory=3, step=1),
        dict(loss=1.0, time=0.2, iter=2, memory=2, step=2),
    ]
    log.write_text('\n'.join(map(json.dumps, lines)))
    run = Run('a', 0, {})
    with pytest.raises(ValueError, match='no log of a whole training'):
        run.read(tmp_path)
    script = tmp_path / 'train.py'
    script.write_text('')  # it ends well, and did nothing
    nothing = Run('some', 0, dict(arguments=[], threads=1))
    training.train(nothing, tmp_path, script, print)
    assert 'no log of a whole training' in nothing.error
    assert not nothing.finished
    lines.append(dict(mIoU=1.0, mIoU_present=5.0, time=0.1, step=2))
    log.write_text('\n'.join(map(json.dumps, lines)))
    run = Run('a', 0, {})
    run.read(tmp_path)
    assert (run.params, run.memory) == (7, 3 * 2**20)
    assert (run.times, run.losses) == ([0.4, 0.2], [2, 1])
    assert run.miou == {2: 5.0}


@pytest.mark.parametrize(
    ('code', 'output', 'expected'),
    [
        (2, 'Iter 1\nerror: no data\n', 'no data'),
        (
            1,
            'Traceback\n  File "x"\nValueError: a wrong\nsecond line\n',
            'ValueError: a wrong',
        ),
        (
            1,
            'torch.OutOfMemoryError: CUDA out of memory. Tried\n',
            'torch.OutOfMemoryError: CUDA out of memory. Tried',
        ),
        (-9, 'Iter 1\n', 'ended by SIGKILL, which may be for lack of memory'),
        (-11, '', 'ended by SIGSEGV'),
        (3, '', 'exit status 3'),
    ],
)
def test_reasons(code, output, expected):
    assert training.reason(code, output) == expected


@pytest.mark.parametrize('on', ['mini', 'photos'])
@pytest.mark.parametrize('crop', [None, 160])
def test_recipe_arrives(tool, mini_place, on, crop):
    for part in ('training', 'validation'):
        Path('photos/images', part).mkdir(parents=True)
    recipe = Recipe(on, iters=300, crop=crop, threads=1)
    arguments = recipe.arguments('resnet18', 3)
    cfg = cli.load_run_config(tool('train').parse_args(arguments))
    assert cfg.model.backbone.model_name == 'resnet18'
    assert cfg.randomness.seed == 3
    assert cfg.train_cfg.max_iters == cfg.param_scheduler[1].end == 300
    assert cfg.train_cfg.val_interval == 60
    side = crop or (80 if on == 'mini' else 512)
    scale = (384, 96) if on == 'mini' and not crop else (4 * side, side)
    steps = {x['type']: x for x in cfg.train_dataloader.dataset.pipeline}
    assert steps['RandomCrop']['crop_size'] == (side, side)
    assert tuple(steps['RandomResize']['scale']) == scale
    assert tuple(cfg.model.data_preprocessor.size) == (side, side)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert loader.num_workers == 0
        root = Path(loader.dataset.data_root)
        assert root.parts[0] == ('data' if on == 'mini' else 'photos')
    steps = {x['type']: x for x in cfg.val_dataloader.dataset.pipeline}
    assert tuple(steps['Resize']['scale']) == scale


@pytest.mark.parametrize(
    ('argv', 'text'),
    [
        (['--on', 'nowhere'], 'there is no nowhere/images/training'),
        (['efficientmod_z', '--on', 'mini'], 'did you mean'),
        (['timm:resnet1', '--on', 'mini'], 'has no model resnet1'),
        (['resnet18', 'resnet18', '--on', 'mini'], 'is named twice'),
        (['--on', 'mini', '--iters', '0'], '--iters'),
        (['--on', 'mini', '--seeds', '1', '1'], '--seeds'),
    ],
)
def test_what_is_refused(tool, tmp_path, monkeypatch, argv, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(text)):
        tool('compare').main(argv)
    assert not list(tmp_path.iterdir())


def test_nothing_of_others_is_removed(tmp_path):
    planned = Run('a', 0, dict(arguments=[], threads=1))
    folder = training.folder_of(planned, tmp_path)
    folder.mkdir(parents=True)
    (folder / 'thesis.txt').write_text('years of work')
    with pytest.raises(ConfigError, match='move it away'):
        training.train(planned, tmp_path, tmp_path / 'train.py', print)
    assert (folder / 'thesis.txt').is_file()


def test_default_is_ours_and_one_of_each_family(tool):
    default = tool('compare').DEFAULT
    others = [x for x in default if not x.startswith('efficientmod')]
    assert set(default) <= set(BACKBONES)
    assert {x for x in BACKBONES if x.startswith('efficientmod')} == (
        set(default) - set(others)
    )
    families = {re.match('[a-z]+', x)[0] for x in BACKBONES}
    assert sorted(re.match('[a-z]+', x)[0] for x in others) == sorted(
        families - {'efficientmod'}
    )


@pytest.mark.slow
@pytest.mark.parametrize('on', ['mini', 'path'])
def test_curves_rise(tool, mini_place, on):
    """At full length, and on a data set in the layout of ADE20K."""
    argv = ['efficientmod_xxs', 'mobilenetv2_100']
    argv += ['--seeds', '0', '1']
    if on == 'path':
        (place,) = mini_place.glob('data/mini/ade20k-*')
        argv += ['--on', str(place), '--crop', '64', '--iters', '60']
    else:
        argv += ['--on', 'mini']
    runs = tool('compare').main(argv)
    assert [(x.model, x.seed) for x in runs] == [
        ('efficientmod_xxs', 0), ('mobilenetv2_100', 0),
        ('efficientmod_xxs', 1), ('mobilenetv2_100', 1),
    ]  # fmt: skip
    for run in runs:
        assert run.error is None
        assert run.losses[-1] < run.losses[0]
        assert run.final_miou > (20 if on == 'mini' else 5)
    assert runs[0].losses != runs[2].losses
