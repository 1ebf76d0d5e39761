"""Runs of a comparison of trainings, and their table and curves."""

import json
from pathlib import Path

import pytest

from mmefficientmod import cli
from mmefficientmod.benchmark.tables import table_cells
from mmefficientmod.benchmark.training import report as training_report
from mmefficientmod.benchmark.training import runs as training
from mmefficientmod.benchmark.training.runs import Recipe, Run
from mmefficientmod.config.nodes import ConfigError

# In place of tools/train.py: writes the log of one iteration.
LOGS_A_TRAINING = """
import json, os, sys, time
place = f'{sys.argv[-1]}/{time.time_ns()}/vis_data'
os.makedirs(place)
with open(f'{place}/scalars.json', 'w') as file:
    print(json.dumps(dict(params=1, loss=2.0, time=3.0)), file=file)
    print(json.dumps(dict(mIoU_present=4.0, step=1)), file=file)
"""


@pytest.mark.parametrize('change', ['arguments', 'source', 'threads'])
def test_run_with_other_settings_is_repeated(tmp_path, change):
    script = tmp_path / 'train.py'
    script.write_text(LOGS_A_TRAINING)
    made = dict(arguments=['a'], source='b', threads=1, machine={})
    run = Run('some', 0, made)
    training.train(run, tmp_path, script, print)
    assert training.find(Run('some', 0, made), tmp_path) == run
    other = Run('some', 0, made | {change: made[change] * 2})
    assert training.find(other, tmp_path) is None
    training.train(other, tmp_path, script, print)
    assert len(other.times) == 1  # the earlier log is gone
    assert training.find(Run('some', 0, made), tmp_path) is None
    assert training.find(Run('some', 1, made), tmp_path) is None


def test_stopped_run_ends_its_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / 'train.py'
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
        training.train(planned, tmp_path, script, stop)
    assert shares == [0.25]
    pid = int(Path('pid').read_text())
    assert not Path(f'/proc/{pid}').exists()
    assert training.find(planned, tmp_path) is None


def test_folder_of_something_else_is_not_removed(tmp_path):
    planned = Run('a', 0, dict(arguments=[], threads=1))
    folder = training.folder_of(planned, tmp_path)
    folder.mkdir(parents=True)
    (folder / 'thesis.txt').write_text('years of work')
    with pytest.raises(ConfigError, match='move it away'):
        training.train(planned, tmp_path, tmp_path / 'train.py', print)
    assert (folder / 'thesis.txt').is_file()


@pytest.mark.parametrize('on', ['mini', 'photos'])
@pytest.mark.parametrize('crop', [None, 160])
def test_recipe_sets_the_config_of_the_training(tool, mini_place, on, crop):
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


def test_log_of_a_gpu_run_is_read(tmp_path):
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
    script.write_text('')  # exits with 0 and logs nothing
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
    ('status', 'output', 'expected'),
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
        (-9, 'Iter 1\n', 'ended by SIGKILL, perhaps for lack of memory'),
        (-11, '', 'ended by SIGSEGV'),
        (3, '', 'exit status 3'),
    ],
)
def test_failure_in_one_line(status, output, expected):
    assert training.failure_of(status, output) == expected


def test_table_has_a_row_for_each_model(finish):
    runs = [
        finish(Run('a', 0, {}), 40, 0.5),
        finish(Run('b', 0, {}), 10),
        finish(Run('a', 1, {}), 44, 0.7, 5e6),
        Run('b', 1, {}, error='it broke'),
        finish(Run('a', 2, {}), 48, 0.6),
        Run('c', 0, {}, error='RuntimeError: no | memory'),
    ]
    columns = training_report.TABLE_COLUMNS
    assert table_cells(columns, training_report.model_values(runs)) == [
        ['model', 'mIoU', '±', 's/iter', 'MB', 'M params', 'seeds'],
        ['a', '44.00', '4.00', '0.600', '5.0', '2.50', '0 1 2'],
        ['b', '10.00', '', '0.500', '3.0', '2.50', '0'],
        ['c', '', '', '', '', '', ''],
    ]
    assert training_report.failures(runs) == [
        'b, seed 1: it broke',
        'c, seed 0: RuntimeError: no | memory',
    ]


def test_curves_have_the_best_model_first(finish):
    runs = [
        finish(Run('a', 0, {}), 10),
        finish(Run('efficientmod_s', 0, {}), 40),
        finish(Run('efficientmod_s', 1, {}), 44),
    ]
    figure = training_report.curves(runs)
    miou, loss = figure.axes
    # In the order of the legend.
    assert [x.get_label() for x in miou.lines] == ['efficientmod_s', 'a']
    assert miou.lines[0].get_xydata().tolist() == [[1, 21], [2, 42]]
    low, high = miou.collections[0].get_paths()[0].get_extents().get_points()
    assert (low[1], high[1]) == (20, 44)
    assert loss.lines[0].get_xydata().tolist() == [[1, 3], [2, 1]]
