"""The wheel, the sdist, the locks and the configs of an installed package."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from packaging.requirements import Requirement

from mmefficientmod import __version__, compat

MIM_CONTENT = ('configs', 'tools', 'model-index.yml')
STACKS = tuple(compat.STACKS)

# Prints where MMEngine finds the package, and the config that it reads there.
FIND_CONFIG = """
import json, sys
import mmefficientmod
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.utils import get_installed_path
name, child = sys.argv[1:]
print(json.dumps({
    'package': mmefficientmod.__file__,
    'installed': get_installed_path('mmefficientmod'),
    'hub': get_config(f'mmefficientmod::{name}').filename,
    'base': Config.fromfile(child).model.backbone.type,
}))
"""


def shipped_files():
    """Files that the wheel has below .mim, as paths from the root."""
    files = {
        path.relative_to(ROOT).as_posix()
        for name in MIM_CONTENT
        for path in (ROOT / name, *(ROOT / name).rglob('*'))
        if path.is_file() and '__pycache__' not in path.parts
    }
    assert 'model-index.yml' in files
    assert any(name.startswith('configs/') for name in files)
    return files


def package_files():
    """Modules of the package, and the marker of its type hints."""
    return {'mmefficientmod/py.typed'} | {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'mmefficientmod').rglob('*.py')
        if '.mim' not in path.parts
    }


def clean_environment(**changes):
    """Environment variables from which Python cannot find this checkout."""
    return {
        **{k: v for k, v in os.environ.items() if k != 'PYTHONPATH'},
        **changes,
    }


@pytest.fixture(scope='module')
def dists(tmp_path_factory):
    """A wheel and an sdist, built from a tree with files to be left out."""
    tree = tmp_path_factory.mktemp('build') / 'tree'
    shutil.copytree(
        ROOT,
        tree,
        ignore=shutil.ignore_patterns(
            '.git',
            '.venv*',
            '*.egg-info',
            '.mim',
            'build',
            'dist',
            'data',
            '.*_cache',
        ),
    )
    for trap in (
        '.venv/lib/site-packages/trap.py',
        'data/trap/images/trap.png',
        'work_dirs/trap/trap.pth',
        'outputs/trap.py',
        'tools/__pycache__/trap.cpython-310.pyc',
        'configs/__pycache__/trap.cpython-310.pyc',
        # As an earlier build leaves it.
        'build/lib/mmefficientmod/.mim/configs/trap.py',
    ):
        path = tree / trap
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('')
    # As an editable installation leaves it.
    mim = tree / 'mmefficientmod/.mim'
    mim.mkdir()
    for name in MIM_CONTENT:
        (mim / name).symlink_to(f'../../{name}')

    out = tree.parent / 'out'
    for kind in ('sdist', 'wheel'):
        # The build hook that pip and uv call, without their isolated build
        # environment, which would be downloaded.
        result = subprocess.run(
            [
                sys.executable,
                '-c',
                f'import setuptools.build_meta as backend; '
                f'backend.build_{kind}({str(out)!r})',
            ],
            cwd=tree,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope='module')
def wheel(dists):
    (path,) = dists.glob('*.whl')
    return path


def test_wheel_holds_package_configs_and_tools_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f'mmefficientmod-{__version__}.dist-info/'
    rest = {name for name in names if not name.startswith(info)}
    assert rest == package_files() | {
        f'mmefficientmod/.mim/{name}' for name in shipped_files()
    }
    assert f'{info}licenses/LICENSE' in names


def test_wheel_keeps_scripts_executable(wheel):
    with zipfile.ZipFile(wheel) as archive:
        modes = {
            Path(x.filename).name: x.external_attr >> 16
            for x in archive.infolist()
            if x.filename.endswith('.sh')
        }
    assert modes.pop('launch.sh')  # the other scripts source it
    assert len(modes) == 4
    assert all(mode & 0o111 == 0o111 for mode in modes.values())


def test_sdist_holds_sources_and_no_build_products(dists):
    (path,) = dists.glob('*.tar.gz')
    prefix = f'mmefficientmod-{__version__}/'
    with tarfile.open(path) as archive:
        names = {
            member.name.removeprefix(prefix)
            for member in archive.getmembers()
            if not member.isdir()
        }
    wanted = {
        'CITATION.cff', 'LICENSE', 'README.md', 'pyproject.toml', 'setup.py'
    }  # fmt: skip
    assert names >= wanted | shipped_files() | package_files()
    assert not [name for name in names if 'trap' in name or '.mim' in name]


def test_wheel_metadata_names_pythons_licence_and_extras(wheel):
    with zipfile.ZipFile(wheel) as archive:
        info = f'mmefficientmod-{__version__}.dist-info/METADATA'
        text = archive.read(info).decode()
    fields = message_from_string(text)
    assert fields['Version'] == __version__
    assert fields['Requires-Python'] == '>=3.10'
    classifiers = fields.get_all('Classifier')
    assert 'Typing :: Typed' in classifiers
    for python in ('3.10', '3.11'):  # those of the two stacks
        assert f'Programming Language :: Python :: {python}' in classifiers
    assert fields['License-Expression'] == 'Apache-2.0'

    required = [Requirement(line) for line in fields.get_all('Requires-Dist')]
    assert [r.name for r in required if r.marker is None] == ['packaging']
    for stack in STACKS:
        extra = {
            (r.name, r.specifier)
            for r in required
            if r.marker and r.marker.evaluate({'extra': stack})
        }
        assert extra >= {
            (r.name, r.specifier)
            for r in map(Requirement, compat.requirements(stack))
        }


def find_config(folder, **environment):
    """Let MMEngine read one of our configs, from outside the checkout."""
    config = min((ROOT / 'configs').glob('seg/fpn_efficientmod_*.py'))
    name = config.relative_to(ROOT / 'configs').as_posix()
    child = folder / 'child.py'
    child.write_text(f"_base_ = 'mmefficientmod::{name}'\n")
    result = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', FIND_CONFIG, name, str(child)],
        cwd=folder,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return name, json.loads(result.stdout.splitlines()[-1])


def test_mmengine_finds_the_configs_of_an_installed_wheel(wheel, tmp_path):
    site = tmp_path / 'site'
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    package = site / 'mmefficientmod'

    name, found = find_config(tmp_path, PYTHONPATH=str(site))
    assert Path(found['package']) == package / '__init__.py'
    assert Path(found['installed']) == package
    assert Path(found['hub']) == package / '.mim/configs' / name
    assert 'EfficientMod' in found['base']


@pytest.mark.slow
def test_mmengine_finds_the_configs_of_this_installation(tmp_path):
    """The editable installation that `make setup` makes."""
    probe = (
        'import importlib.util, sys; '
        "sys.exit(importlib.util.find_spec('mmefficientmod') is None)"
    )
    if subprocess.run(
        [sys.executable, '-c', probe], cwd=tmp_path, env=clean_environment()
    ).returncode:
        pytest.skip('the package is not installed here; see `make setup`')

    name, found = find_config(tmp_path)
    assert Path(found['package']).samefile(ROOT / 'mmefficientmod/__init__.py')
    assert Path(found['installed']).samefile(ROOT / 'mmefficientmod')
    assert Path(found['hub']).samefile(ROOT / 'configs' / name)
    assert 'EfficientMod' in found['base']


def read_lock(stack):
    """The requirements of a lock."""
    lines = (ROOT / f'requirements/{stack}.txt').read_text().splitlines()
    return [
        Requirement(line)
        for line in lines
        if line.strip() and not line.lstrip().startswith('#')
    ]


@pytest.mark.parametrize('stack', STACKS)
def test_lock_pins_accepted_versions_of_one_stack(stack):
    versions = {}
    for requirement in read_lock(stack):
        (pin,) = requirement.specifier
        assert pin.operator == '==', requirement
        assert requirement.url is None
        versions.setdefault(requirement.name, set()).add(pin.version)

    for wanted in map(Requirement, compat.requirements(stack)):
        # A lock may have another version for an older Python.
        for version in versions[wanted.name]:
            assert version in wanted.specifier, wanted
    other = STACKS[1 - STACKS.index(stack)]
    assert not {
        dist
        for dists in compat.STACKS[other].values()
        for dist in dists
        if dist in versions
    }


@pytest.mark.parametrize('stack', STACKS)
def test_lock_satisfies_its_input(stack):
    """Fails where an input was edited without `make lock`."""
    lock = read_lock(stack)
    for line in (ROOT / f'requirements/{stack}.in').read_text().splitlines():
        if line and not line.startswith('#'):
            asked = Requirement(line)
            pins = {
                pin.version
                for locked in lock
                for pin in locked.specifier
                if locked.name == asked.name
            }
            # One for each marker; all of them without a marker.
            found = [version in asked.specifier for version in pins]
            assert any(found) if asked.marker else all(found), line
            assert found, line


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'requirements').iterdir()), ids=lambda p: p.name
)
def test_requirements_name_no_registry_and_no_local_path(path):
    found = re.search(
        r'://|-url|find-links|(^|[\s"\'=])/\w|file:', path.read_text(), re.M
    )
    assert found is None, found


@pytest.mark.skipif(shutil.which('make') is None, reason='make is missing')
@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['setup', 'STACK=mmlab'], 'but only onedl and openmmlab exist'),
        (['lint', 'STACK=openmmlab'], 'The default stack alone has the tools'),
        (
            ['python', 'PYTHON=no-such-python'],
            'which no-such-python is not: install it',
        ),
        (
            ['python', 'STACK=openmmlab', 'PYTHON=no-such-python'],
            'The openmmlab stack needs Python 3.10 exactly',
        ),
    ],
)
def test_make_explains_an_error_in_one_sentence(arguments, message):
    # Without the settings of a make that runs this test.
    environment = {
        k: v for k, v in os.environ.items() if k not in ('MAKEFLAGS', 'STACK')
    }
    result = subprocess.run(
        ['make', *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode
    assert message in result.stderr
    # make itself adds the line "make: *** [...] Error 1".
    lines = [x for x in result.stderr.splitlines() if ' Error ' not in x]
    assert len(lines) == 1


def test_citation_names_this_version_and_the_paper():
    content = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert content['cff-version'] == '1.2.0'
    assert content['version'] == __version__
    paper = content['preferred-citation']
    assert paper['title'] == 'Efficient Modulation for Vision Networks'
    assert len(paper['authors']) == 7
    assert paper['url'].endswith('2403.19963')
