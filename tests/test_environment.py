"""The environment report for bug reports and benchmarks."""

import os
import subprocess
import sys
from pathlib import Path

import mmcv
import pytest
import torch
from helpers import ROOT

from mmefficientmod import __version__, compat
from mmefficientmod.environment import bug_report, machine


def run_module(*folders):
    """Run ``python -m mmefficientmod`` with ``folders`` first on the path."""
    path = os.pathsep.join(map(str, (*folders, ROOT)))
    return subprocess.run(
        [sys.executable, '-m', 'mmefficientmod'],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': path},
    )


def report_lines():
    return dict(line.split(': ', 1) for line in bug_report().splitlines())


def test_module_run_prints_the_bug_report():
    result = run_module()
    assert result.returncode == 0, result.stderr
    assert result.stdout == bug_report() + '\n'


def test_bug_report_names_versions_and_devices():
    lines = report_lines()
    assert lines['mmefficientmod'] == __version__
    stack, packages = compat.installed_stack()
    assert lines['Stack'].startswith(f'{stack}: torch {torch.__version__}')
    for name in packages:
        assert f'{name} ' in lines['Stack']
    assert 'timm ' in lines['Libraries']
    assert lines['CPU'].endswith(' cores')
    names = [
        torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
    ]
    assert all(name in lines['GPU'] for name in names)


@pytest.mark.parametrize(
    ('module', 'expected'),
    [
        (None, 'stand-in'),
        ('', 'compiled'),
        (
            'raise ImportError("undefined symbol")',
            'compiled, but they do not load: undefined symbol',
        ),
    ],
    ids=['absent', 'compiled', 'broken'],
)
def test_bug_report_tells_whether_ops_are_compiled(
    tmp_path, monkeypatch, module, expected
):
    if module is None:
        if not mmcv_is_lite():
            pytest.skip('mmcv has compiled ops here')
    else:
        (tmp_path / '_ext.py').write_text(module)
        monkeypatch.setattr(mmcv, '__path__', [str(tmp_path), *mmcv.__path__])
        # Set before they are removed, so that monkeypatch restores both even
        # where mmcv._ext was not imported yet.
        monkeypatch.setattr(mmcv, '_ext', None, raising=False)
        monkeypatch.setitem(sys.modules, 'mmcv._ext', None)
        del sys.modules['mmcv._ext']
    assert report_lines()['mmcv ops'].startswith(expected)


def mmcv_is_lite():
    return not list(Path(mmcv.__file__).parent.glob('_ext*.so'))


def test_module_run_explains_a_broken_environment_without_a_traceback(
    tmp_path,
):
    info = tmp_path / 'torch-1.13.1.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(
        'Metadata-Version: 2.1\nName: torch\nVersion: 1.13.1\n'
    )
    result = run_module(tmp_path)
    assert result.returncode
    (line,) = result.stderr.splitlines()
    assert 'torch 1.13.1, which is too old' in line
    assert 'run `uv pip install ' in line


def test_machine_names_the_gpu_only_where_it_is_measured():
    found = machine(torch.device('cpu'))
    assert list(found)[:5] == [
        'cpu', 'cores', 'system', 'python', 'mmefficientmod'
    ]  # fmt: skip
    assert found['torch'] == torch.__version__.split('+')[0]
    assert 'gpu' not in found
