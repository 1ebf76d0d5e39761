"""``tools/compare.py`` from its arguments to its files.

Each training is a process of its own, on the miniature of ADE20K.
"""

import csv
import json
import re

import cv2
import pytest
import torch

from mmefficientmod.analysis.memory import saved_bytes
from mmefficientmod.benchmark.cases import BenchmarkCase
from mmefficientmod.benchmark.model_specs import parse_model_spec
from mmefficientmod.benchmark.training import runs as training
from mmefficientmod.benchmark.workloads import prepare
from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.models.backbones.efficientmod_variants import ARCHS
from mmefficientmod.swap.names import BACKBONES

# Accepted by tools/compare.py; the process that trains refuses it.
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
def run_compare(tool, few_place, monkeypatch):
    """``tools/compare.py`` with short trainings, on a wide terminal."""
    monkeypatch.setenv('COLUMNS', '200')

    def main(*argv):
        return tool('compare').main([*argv, *SHORT, '--out', 'out'])

    return main


def contents(folder):
    """Every file of a folder, and when it was written."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob('*')
        if path.is_file()
    }


def bytes_by_benchmark(model):
    """What a training step of the whole model saves, by the benchmark."""
    built = parse_model_spec(model, training.CONFIG).build()
    image = torch.rand(2, 3, 32, 32)
    work = prepare(built, BenchmarkCase('train', 2, 32, 32, 'fp32', 1), image)
    return saved_bytes(work.forward, [*built.parameters(), image])


def test_runs_are_made_once_and_failures_are_rows(
    run_compare, few_place, capsys
):
    ours, broken = run_compare('efficientmod-xxs', BROKEN, '--iters', '2')
    shown = capsys.readouterr().out
    check_finished(ours)
    assert ours.model == 'efficientmod_xxs'
    # Of the whole segmentor, as in the model index.
    assert ours.params == 8606134
    assert ours.memory == pytest.approx(
        bytes_by_benchmark(ours.model), rel=0.02
    )
    assert not broken.finished
    assert 'width_factor' in broken.error
    assert re.search(r'efficientmod_xxs +\d+\.\d\d', shown)
    assert 'nothing about ADE20K' in ' '.join(shown.split())
    assert f'{broken.model}, seed 0: failed, ' in shown

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
    # Weights are not kept: they would fill the disk.
    assert not list(out.rglob('*.pth'))

    # A finished run is not repeated.
    kept = contents(out / 'efficientmod_xxs')
    assert run_compare('efficientmod_xxs', '--iters', '2') == [ours]
    assert contents(out / 'efficientmod_xxs') == kept


def check_finished(run):
    assert run.finished
    assert run.error is None
    assert len(run.times) == len(run.losses) == 2
    assert list(run.miou) == [1, 2]
    assert 0 <= run.final_miou <= 100
    assert run.seconds > 0


def test_ctrl_c_keeps_finished_runs(
    run_compare, few_place, finish, monkeypatch, capsys
):
    asked = []

    def train(made, out, script, progress):
        asked.append(made.model)
        if len(asked) == 2:
            raise KeyboardInterrupt
        finish(made).save(training.folder_of(made, out))

    monkeypatch.setattr(training, 'train', train)
    argv = ['mobilenetv2_100', 'resnet18', 'pvt_v2_b0', '--iters', '2']
    with pytest.raises(KeyboardInterrupt):
        run_compare(*argv)
    assert re.search(r'mobilenetv2_100 +40\.00', capsys.readouterr().out)
    text = (few_place / 'out/results.md').read_text()
    assert '| mobilenetv2_100 | 40.00 |' in text
    assert 'resnet18' not in text
    assert [x.finished for x in run_compare(*argv)] == [True] * 3
    assert asked == ['mobilenetv2_100', 'resnet18', 'resnet18', 'pvt_v2_b0']


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
def test_wrong_arguments_are_refused(tool, tmp_path, monkeypatch, argv, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(text)):
        tool('compare').main(argv)
    assert not list(tmp_path.iterdir())


def test_default_is_ours_and_one_of_each_family(tool):
    default = tool('compare').DEFAULT
    others = [x for x in default if not x.startswith('efficientmod')]
    assert set(default) <= set(BACKBONES)
    # Those that the authors' code has.
    assert {f'efficientmod_{arch}' for arch in ARCHS} == (
        set(default) - set(others)
    )
    families = {re.match('[a-z]+', x)[0] for x in BACKBONES}
    assert sorted(re.match('[a-z]+', x)[0] for x in others) == sorted(
        families - {'efficientmod'}
    )


@pytest.mark.slow
@pytest.mark.parametrize('on', ['mini', 'path'])
def test_trainings_at_full_length_learn(tool, mini_place, on):
    """On the miniature, and on a data set in the layout of ADE20K."""
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
