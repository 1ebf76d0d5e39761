"""The importer that serves ``mmcv._ext`` where mmcv has none compiled."""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

_EXT = 'mmcv._ext'


class OpNotServedError(NotImplementedError):
    """An mmcv op was called that exists only in a compiled mmcv."""


class StandinLoader(importlib.abc.Loader):
    """Fills the module ``mmcv._ext`` with the kernels of this package."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Leaves it to Python to make an empty module."""

    def exec_module(self, module: ModuleType) -> None:
        """Puts the kernels in ``module``, and an error for any other op."""
        # Here and not above: only now are torch and torchvision needed.
        from . import kernels

        for name in kernels.__all__:
            setattr(module, name, getattr(kernels, name))
        # mmcv.ops asks for every op it knows while it is imported, so an op
        # that is not served may fail only when it is called.
        module.__getattr__ = _unserved


class StandinFinder(importlib.abc.MetaPathFinder):
    """Finds ``mmcv._ext``, and nothing else."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Returns the spec of the stand-in when asked for ``mmcv._ext``."""
        if fullname != _EXT:
            return None
        return importlib.util.spec_from_loader(
            fullname, StandinLoader(), origin='mmefficientmod.ops.kernels'
        )


def install() -> None:
    """Lets ``mmcv._ext`` be found; cheap, and harmless when repeated.

    The finder is the last that Python asks, so compiled ops of mmcv, where
    they are installed, are always used instead.
    """
    if not any(isinstance(f, StandinFinder) for f in sys.meta_path):
        sys.meta_path.append(StandinFinder())


def is_standin() -> bool:
    """Tells whether mmcv's ops are those of this package (imports mmcv).

    Returns:
        bool: False where mmcv has compiled ops, where mmcv is not installed,
        and before :func:`install`.
    """
    try:
        spec = importlib.util.find_spec(_EXT)
    except ModuleNotFoundError as error:
        if error.name == 'mmcv':
            return False
        raise  # mmcv is there, and something that it needs is not
    return spec is not None and isinstance(spec.loader, StandinLoader)


def _unserved(name: str) -> Callable[..., NoReturn]:
    if name.startswith('_'):
        raise AttributeError(f'module {_EXT!r} has no attribute {name!r}')

    def op(*args: object, **kwargs: object) -> NoReturn:
        raise OpNotServedError(
            f'The mmcv op {name!r} is in a compiled mmcv only, which takes a '
            'C++ compiler: `MMCV_WITH_OPS=1 uv pip install '
            '--no-build-isolation --no-binary onedl-mmcv onedl-mmcv`, or, '
            'next to the packages of OpenMMLab, `mmcv` built from source in '
            'place of `mmcv-lite`.'
        )

    op.__name__ = op.__qualname__ = name
    return op
