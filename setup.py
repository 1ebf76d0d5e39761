"""Builds the package; static metadata is in pyproject.toml."""

import os
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# OpenMMLab's tools look here for the configs and tools of a package.
MIM_DIR = Path('mmefficientmod', '.mim')
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')

# These files are run on their own: importing the package would import torch,
# which the machine that builds may not have.
version = runpy.run_path(str(ROOT / 'mmefficientmod/version.py'))
compat = runpy.run_path(str(ROOT / 'mmefficientmod/compat.py'))


class BuildWithMim(build_py):
    """Add configs, tools and the model index to the package."""

    def run(self) -> None:
        super().run()
        mim_dir = self._mim_dir()
        if self.editable_mode:
            mim_dir.mkdir(exist_ok=True)
            for name in MIM_CONTENT:
                self._link(mim_dir / name)
            return
        # setuptools keeps the build folder, which may hold files that were
        # deleted or renamed since the last build.
        shutil.rmtree(mim_dir, ignore_errors=True)
        for source, target in self._mim_files():
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        outputs = super().get_outputs(include_bytecode)
        if self.editable_mode:
            return outputs
        return outputs + [str(target) for _, target in self._mim_files()]

    def _mim_dir(self) -> Path:
        return (ROOT if self.editable_mode else Path(self.build_lib)) / MIM_DIR

    def _mim_files(self) -> list[tuple[Path, Path]]:
        """Pair each file to add with its path in the build folder."""
        return [
            (source, self._mim_dir() / source.relative_to(ROOT))
            for name in MIM_CONTENT
            for source in (ROOT / name, *sorted((ROOT / name).rglob('*')))
            if source.is_file() and '__pycache__' not in source.parts
        ]

    @staticmethod
    def _link(link: Path) -> None:
        # Relative, so that the links still work when the checkout is moved.
        target = os.path.relpath(ROOT / link.name, link.parent)
        if link.is_symlink():
            link.unlink()
        link.symlink_to(target)


def extra(stack: str, *undeclared: str) -> list[str]:
    """List the packages of a stack and those that it does not declare."""
    return [*compat['requirements'](stack), *undeclared]


setup(
    version=version['__version__'],
    packages=find_packages(include=['mmefficientmod', 'mmefficientmod.*']),
    # No stack is required here: pip would install one over the other.
    install_requires=['packaging'],
    extras_require={
        'onedl': extra('onedl'),
        # The reasons are in requirements/openmmlab.in.
        'openmmlab': extra(
            'openmmlab', 'ftfy', 'regex', 'numpy<2', 'setuptools<81'
        ),
        # For tools/export.py, and the modes of tools/benchmark.py that run
        # its files: ONNX, and one for each further kind of file.
        'export': ['onnx', 'onnxruntime'],
        'openvino': ['nncf', 'onnx', 'openvino'],
        'ncnn': ['ncnn', 'pnnx'],
        'coreml': ['coremltools'],
        # For `--data` with files of YOLO, Pascal VOC or labelme.
        'formats': ['supervision>=0.31'],
        # For the tests and `make lint`.
        'test': [
            'codespell',
            'import-linter',
            'mypy',
            'pytest',
            'pytest-xdist',
            'ruff',
            'setuptools>=77',
            'timm',
        ],
    },
    cmdclass={'build_py': BuildWithMim},
)
