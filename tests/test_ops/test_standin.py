"""The importer that serves the stand-in as ``mmcv._ext``."""

import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mmefficientmod.ops import (
    OpNotServedError,
    install,
    is_standin,
    kernels,
    standin,
)


def test_arguments_are_those_of_mmcv() -> None:
    mmcv_ops = pytest.importorskip('mmcv.ops')
    source = Path(mmcv_ops.__file__).parent / 'csrc/pytorch/pybind.cpp'
    if not source.is_file():
        pytest.skip('mmcv was installed without its sources')
    defined = dict(
        re.findall(r'm\.def\(\s*"(\w+)"(.*?)\);', source.read_text(), re.S)
    )
    for name in kernels.__all__:
        expected = re.findall(r'py::arg\("(\w+)"\)', defined[name])
        ours = list(inspect.signature(getattr(kernels, name)).parameters)
        assert ours == expected, name


def test_finder_serves_mmcv_ext_only(mmcv_ops: ModuleType) -> None:
    spec = importlib.util.find_spec('mmcv._ext')
    assert isinstance(spec.loader, standin.StandinLoader)
    assert spec.origin == 'mmefficientmod.ops.kernels'
    assert standin.StandinFinder().find_spec('mmcv._other', None) is None
    # MMEngine's check for compiled ops, and its environment report.
    dl_utils = importlib.import_module('mmengine.utils.dl_utils')
    assert dl_utils.mmcv_full_available()
    assert 'mmefficientmod' in mmcv_ops.get_compiler_version()
    assert str(torch.version.cuda) in mmcv_ops.get_compiling_cuda_version()
    if sys.version_info < (3, 12):
        assert pkgutil.find_loader('mmcv._ext') is not None


def test_install_again_changes_nothing() -> None:
    before = list(sys.meta_path)
    install()
    assert sys.meta_path == before
    assert sum(isinstance(f, standin.StandinFinder) for f in before) == 1


def test_op_that_is_not_served_raises_when_called() -> None:
    module = types.ModuleType('mmcv._ext')
    standin.StandinLoader().exec_module(module)
    assert module.nms is kernels.nms
    assert hasattr(module, 'box_iou_rotated')
    with pytest.raises(OpNotServedError, match="'box_iou_rotated'") as error:
        module.box_iou_rotated(torch.zeros(1, 5), angle=1)
    assert 'MMCV_WITH_OPS=1 uv pip install' in str(error.value)
    assert isinstance(error.value, NotImplementedError)
    with pytest.raises(AttributeError, match='__path__'):
        module.__path__  # noqa: B018


def test_missing_mmcv_stays_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    monkeypatch.setitem(sys.modules, 'mmcv', None)
    assert not is_standin()
    with pytest.raises(ModuleNotFoundError, match='mmcv'):
        importlib.import_module('mmcv._ext')


@pytest.mark.parametrize('compiled', [True, False])
def test_compiled_ops_come_first(tmp_path: Path, compiled: bool) -> None:
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').touch()
    if compiled:
        (package / '_ext.py').write_text('compiled = True\n')
    # Loads the file alone: the package needs more of mmcv than this one has.
    script = f"""
import importlib.util, sys
sys.path.insert(0, {str(tmp_path)!r})
spec = importlib.util.spec_from_file_location('it', {standin.__file__!r})
it = importlib.util.module_from_spec(spec)
spec.loader.exec_module(it)
assert not it.is_standin() or {compiled}
it.install()
assert 'torch' not in sys.modules
print(it.is_standin())
if {compiled}:
    import mmcv._ext
    assert mmcv._ext.compiled and not hasattr(mmcv._ext, 'nms')
"""
    result = subprocess.run(
        [sys.executable, '-c', script], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(not compiled)
