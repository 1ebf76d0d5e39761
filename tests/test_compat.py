"""The check of installed packages, on made-up environments and this one."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT
from packaging.requirements import Requirement

from mmefficientmod import compat
from mmefficientmod.compat import check_environment

# The versions that the locks pin.
TORCH = {'torch': '2.13.0', 'torchvision': '0.28.0'}
ONEDL = {
    **TORCH,
    'onedl-mmengine': '0.10.12',
    'onedl-mmcv': '2.3.6',
    'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2',
    'onedl-mmpretrain': '1.3.6',
}
OPENMMLAB = {
    'torch': '2.1.2',
    'torchvision': '0.16.2',
    'mmengine': '0.10.7',
    'mmcv-lite': '2.1.0',
    'mmdet': '3.3.0',
    'mmsegmentation': '1.2.2',
    'mmpretrain': '1.2.0',
}


def write_dists(folder, dists):
    for dist, version in dists.items():
        info = folder / f'{dist.replace("-", "_")}-{version}.dist-info'
        info.mkdir()
        (info / 'METADATA').write_text(
            f'Metadata-Version: 2.1\nName: {dist}\nVersion: {version}\n'
        )


@pytest.fixture
def check(tmp_path, monkeypatch):
    """Checks an environment with the given distributions and no others."""

    def run(dists):
        write_dists(tmp_path, dists)
        with monkeypatch.context() as patch:
            patch.setattr(sys, 'path', [str(tmp_path)])
            check_environment()

    return run


@pytest.fixture
def complaint(check):
    """The message for an environment that must be refused."""

    def run(dists):
        with pytest.raises(ImportError) as caught:
            check(dists)
        message = str(caught.value)
        assert message.startswith('mmefficientmod ')
        assert message.endswith('`.')
        # One sentence on one line.
        assert '\n' not in message
        assert not re.search(r'\. [A-Z]', message)
        return message

    return run


def install(stack, dist, accepted):
    """The command that repairs a package; torch brings torchvision."""
    if dist not in TORCH:
        return f'uv pip install "{dist}{accepted}"'
    if stack is ONEDL:
        return 'uv pip install "torch>=2.3,<3" "torchvision>=0.18,<1"'
    return 'uv pip install "torch>=2.1,<2.6" "torchvision>=0.16,<0.21"'


def without(dists, *names):
    return {d: v for d, v in dists.items() if d not in names}


@pytest.mark.parametrize('dists', [ONEDL, OPENMMLAB], ids=str)
def test_stacks_of_the_locks_are_accepted(check, dists):
    check(dists)


@pytest.mark.parametrize(
    'dists',
    [
        without(
            ONEDL,
            'onedl-mmdetection',
            'onedl-mmsegmentation',
            'onedl-mmpretrain',
        ),
        without(OPENMMLAB, 'mmdet', 'mmsegmentation', 'mmpretrain'),
        {**without(OPENMMLAB, 'mmcv-lite'), 'mmcv': '2.1.0'},
        {**without(OPENMMLAB, 'mmengine'), 'mmengine-lite': '0.10.7'},
    ],
    ids=['onedl-bare', 'openmmlab-bare', 'full-mmcv', 'mmengine-lite'],
)
def test_toolboxes_and_full_builds_are_optional(check, dists):
    check(dists)


@pytest.mark.parametrize(
    ('stack', 'missing', 'accepted'),
    [
        (ONEDL, 'torch', '>=2.3,<3'),
        (ONEDL, 'torchvision', '>=0.18,<1'),
        (ONEDL, 'onedl-mmengine', '>=0.10.8,<0.11'),
        (ONEDL, 'onedl-mmcv', '>=2.3.1,<2.4'),
        (OPENMMLAB, 'torch', '>=2.1,<2.6'),
        (OPENMMLAB, 'torchvision', '>=0.16,<0.21'),
        (OPENMMLAB, 'mmengine', '>=0.10,<0.11'),
        (OPENMMLAB, 'mmcv-lite', '>=2.1,<2.2'),
    ],
)
def test_missing_package_is_named_with_its_remedy(
    complaint, stack, missing, accepted
):
    message = complaint(without(stack, missing))
    assert f'found no {missing} (accepted: {accepted})' in message
    assert message.endswith(f': run `{install(stack, missing, accepted)}`.')


def test_empty_environment_is_told_to_install_the_default_stack(complaint):
    assert complaint({}).endswith(
        ': run `uv pip install "torch>=2.3,<3" "torchvision>=0.18,<1" '
        '"onedl-mmengine>=0.10.8,<0.11" "onedl-mmcv>=2.3.1,<2.4"`.'
    )


@pytest.mark.parametrize(
    ('stack', 'dist', 'version', 'fault', 'accepted'),
    [
        (ONEDL, 'torch', '2.2.2', 'too old', '>=2.3,<3'),
        (ONEDL, 'torch', '3.0.0', 'too new', '>=2.3,<3'),
        (ONEDL, 'torchvision', '0.17.2', 'too old', '>=0.18,<1'),
        (ONEDL, 'torchvision', '1.0', 'too new', '>=0.18,<1'),
        (ONEDL, 'onedl-mmengine', '0.10.7', 'too old', '>=0.10.8,<0.11'),
        (ONEDL, 'onedl-mmengine', '0.11.0', 'too new', '>=0.10.8,<0.11'),
        (ONEDL, 'onedl-mmcv', '2.2.0', 'too old', '>=2.3.1,<2.4'),
        (ONEDL, 'onedl-mmcv', '2.4.0', 'too new', '>=2.3.1,<2.4'),
        (ONEDL, 'onedl-mmdetection', '3.4.7', 'too old', '>=3.5,<3.6'),
        (ONEDL, 'onedl-mmdetection', '3.6.0', 'too new', '>=3.5,<3.6'),
        (ONEDL, 'onedl-mmsegmentation', '1.3.3', 'too old', '>=1.4,<1.5'),
        (ONEDL, 'onedl-mmsegmentation', '1.5.0', 'too new', '>=1.4,<1.5'),
        (ONEDL, 'onedl-mmpretrain', '1.2.0', 'too old', '>=1.3,<1.4'),
        (ONEDL, 'onedl-mmpretrain', '1.4.0', 'too new', '>=1.3,<1.4'),
        (OPENMMLAB, 'torch', '2.0.1', 'too old', '>=2.1,<2.6'),
        (OPENMMLAB, 'torch', '2.6.0', 'too new', '>=2.1,<2.6'),
        (OPENMMLAB, 'torchvision', '0.15.2', 'too old', '>=0.16,<0.21'),
        (OPENMMLAB, 'torchvision', '0.21.0', 'too new', '>=0.16,<0.21'),
        (OPENMMLAB, 'mmengine', '0.9.1', 'too old', '>=0.10,<0.11'),
        (OPENMMLAB, 'mmengine', '0.11.0', 'too new', '>=0.10,<0.11'),
        (OPENMMLAB, 'mmcv-lite', '2.0.1', 'too old', '>=2.1,<2.2'),
        (OPENMMLAB, 'mmcv-lite', '2.2.0', 'too new', '>=2.1,<2.2'),
        (OPENMMLAB, 'mmdet', '2.28.2', 'too old', '>=3.3,<3.4'),
        (OPENMMLAB, 'mmdet', '3.4.0', 'too new', '>=3.3,<3.4'),
        (OPENMMLAB, 'mmsegmentation', '1.1.2', 'too old', '>=1.2,<1.3'),
        (OPENMMLAB, 'mmsegmentation', '1.3.0', 'too new', '>=1.2,<1.3'),
        (OPENMMLAB, 'mmpretrain', '1.1.1', 'too old', '>=1.2,<1.3'),
        (OPENMMLAB, 'mmpretrain', '1.3.0', 'too new', '>=1.2,<1.3'),
        # A release candidate comes before its release.
        (OPENMMLAB, 'torch', '2.1.0rc1', 'too old', '>=2.1,<2.6'),
        (ONEDL, 'torch', '2.3.0rc1', 'too old', '>=2.3,<3'),
        (ONEDL, 'torch', '3.0.0rc1', 'too new', '>=2.3,<3'),
        (ONEDL, 'torch', '1.13.1+cu117', 'too old', '>=2.3,<3'),
    ],
)
def test_version_out_of_range_is_named_with_its_remedy(
    complaint, stack, dist, version, fault, accepted
):
    message = complaint({**stack, dist: version})
    assert (
        f'{dist} {version}, which is {fault} (accepted: {accepted})' in message
    )
    assert message.endswith(f': run `{install(stack, dist, accepted)}`.')


@pytest.mark.parametrize(
    ('stack', 'version'),
    [
        (OPENMMLAB, '2.1'),
        (OPENMMLAB, '2.1.0'),
        (OPENMMLAB, '2.1.0+cpu'),
        (OPENMMLAB, '2.5.1'),
        (ONEDL, '2.13.0+cu130'),
        (ONEDL, '2.14.0.dev1+cu130'),
    ],
)
def test_local_and_nightly_versions_of_torch_are_accepted(
    check, stack, version
):
    check({**stack, 'torch': version})


def test_unreadable_version_is_refused(complaint):
    message = complaint({**ONEDL, 'torch': 'unknown'})
    assert 'torch unknown, which is not a version' in message


def test_all_problems_are_named_in_one_message(complaint):
    message = complaint(
        {**without(ONEDL, 'torchvision'), 'onedl-mmcv': '2.2.0'}
    )
    assert 'no torchvision' in message
    assert 'onedl-mmcv 2.2.0, which is too old' in message
    assert message.endswith(
        'run `uv pip install "torch>=2.3,<3" "torchvision>=0.18,<1" '
        '"onedl-mmcv>=2.3.1,<2.4"`.'
    )


def test_both_stacks_together_are_refused(complaint):
    message = complaint({**OPENMMLAB, **ONEDL})
    for dist, version in without({**OPENMMLAB, **ONEDL}, *TORCH).items():
        assert f'{dist} {version}' in message
    assert "overwrite each other's files" in message
    uninstall, install = re.findall('`uv pip (.*?)`', message)
    assert set(uninstall.split()) == {'uninstall', *ONEDL, *OPENMMLAB} - {
        *TORCH
    }
    assert install == (
        'install "torch>=2.3,<3" "torchvision>=0.18,<1" '
        '"onedl-mmengine>=0.10.8,<0.11" "onedl-mmcv>=2.3.1,<2.4" '
        '"onedl-mmdetection>=3.5,<3.6" "onedl-mmsegmentation>=1.4,<1.5" '
        '"onedl-mmpretrain>=1.3,<1.4"'
    )


def test_toolbox_of_the_other_stack_is_refused(complaint):
    """Even where no module is provided twice."""
    message = complaint(
        {
            **without(
                ONEDL,
                'onedl-mmdetection',
                'onedl-mmsegmentation',
                'onedl-mmpretrain',
            ),
            'mmdet': '3.3.0',
        }
    )
    assert message.endswith(
        'run `uv pip uninstall onedl-mmengine onedl-mmcv mmdet` and then '
        '`uv pip install "torch>=2.3,<3" "torchvision>=0.18,<1" '
        '"onedl-mmengine>=0.10.8,<0.11" "onedl-mmcv>=2.3.1,<2.4" '
        '"onedl-mmdetection>=3.5,<3.6"`.'
    )


def test_two_builds_of_mmcv_are_refused(complaint):
    message = complaint({**OPENMMLAB, 'mmcv': '2.1.0'})
    assert 'mmcv-lite 2.1.0, mmcv 2.1.0 are installed together' in message
    assert message.endswith(
        'run `uv pip uninstall mmcv-lite mmcv` and then '
        '`uv pip install "mmcv-lite>=2.1,<2.2"`.'
    )


@pytest.mark.parametrize('finder', ['importlib', 'importlib_metadata'])
def test_metadata_without_a_version_counts_as_missing(
    tmp_path, complaint, finder
):
    """The backport, once imported, replaces the standard library's finder."""
    pytest.importorskip(finder)
    (tmp_path / 'torch-2.13.0.dist-info').mkdir()
    assert 'found no torch ' in complaint(without(ONEDL, 'torch'))


def test_missing_packaging_is_named_with_its_remedy(complaint, monkeypatch):
    monkeypatch.setitem(sys.modules, 'packaging.specifiers', None)
    message = complaint(ONEDL)
    assert message.endswith('run `uv pip install "packaging"`.')


def test_this_environment_is_accepted():
    check_environment()


def test_import_checks_before_torch_is_loaded(tmp_path):
    write_dists(tmp_path, {'torch': '1.13.1'})
    (tmp_path / 'torch.py').write_text('raise SystemExit("loaded")')
    result = subprocess.run(
        [sys.executable, '-c', 'import mmefficientmod'],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}'},
    )
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(
        'ImportError: mmefficientmod cannot run, since it found torch '
        '1.13.1, which is too old (accepted: >=2.'
    )


def test_requirements_need_only_the_standard_library():
    """setup.py reads the file where nothing else may be installed."""
    code = (
        'import runpy, sys; '
        f'compat = runpy.run_path({compat.__file__!r}); '
        "print(*compat['requirements']('openmmlab'), sep='\\n')"
    )
    result = subprocess.run(
        [sys.executable, '-I', '-S', '-c', code],
        capture_output=True,
        text=True,
        check=True,
    )
    names = [Requirement(line).name for line in result.stdout.splitlines()]
    assert sorted(names) == sorted(OPENMMLAB)
