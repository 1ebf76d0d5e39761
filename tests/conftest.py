"""What the tests share."""

import gc
import importlib.util
import sys
import weakref
from pathlib import Path

import pytest
from helpers import configs_read_and_formatted_once

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='session', autouse=True)
def own_cache_folder(tmp_path_factory):
    """The choices of matmul are not kept among those of the user."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp('cache')
        patch.setenv('XDG_CACHE_HOME', str(folder))
        yield


@pytest.fixture(scope='session')
def tool():
    """Import a command line of ``tools/`` by its name."""

    def load(name):
        key = f'tools_{name}'
        if key not in sys.modules:
            path = ROOT / 'tools' / f'{name}.py'
            spec = importlib.util.spec_from_file_location(key, path)
            sys.modules[key] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[key])
        return sys.modules[key]

    return load


@pytest.fixture(scope='session')
def mini_root(tmp_path_factory):
    """A folder with the miniatures, for tests that only read them."""
    from mmefficientmod.datasets.mini import MINIATURES, prepare

    root = tmp_path_factory.mktemp('mini')
    for mini in MINIATURES.values():
        prepare(mini, str(root))
    return root


@pytest.fixture
def mini_place(tmp_path, mini_root, monkeypatch):
    """A working directory of its own, in which the miniatures are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/mini').symlink_to(mini_root)
    return tmp_path


@pytest.fixture(scope='session', autouse=True)
def configs_kept():
    with configs_read_and_formatted_once():
        yield


known_modules = 0


@pytest.fixture(autouse=True)
def imported_modules_are_no_garbage():
    """The garbage collector need not look at imported modules again.

    Each data set of MMEngine calls the collector, which took half a second
    with all toolboxes imported. Tests import some of them.
    """
    global known_modules
    if len(sys.modules) > known_modules + 100:
        known_modules = len(sys.modules)
        gc.collect()
        gc.freeze()


@pytest.fixture(scope='session')
def known_levels():
    """What the backbones return that were probed."""
    return {}


@pytest.fixture
def probed_once(known_levels, monkeypatch):
    """Each backbone is built and run once to find out what it returns."""
    from mmengine.registry import DefaultScope

    from mmefficientmod.swap import backbone, levels, probe

    def known(config):
        scope = DefaultScope.get_current_instance().scope_name
        key = probe.class_of(config), scope, str(sorted(config.items()))
        if key not in known_levels:
            known_levels[key] = probe.probe(config)
        return known_levels[key]

    for module in backbone, levels:
        monkeypatch.setattr(module, 'probe', known)


@pytest.fixture(autouse=True)
def workers_end(monkeypatch):
    """Processes that load data end with the test.

    Those of an iterator that the garbage collector finds in a circle of
    references are not told to, waited for, and killed after 5 s each.
    """
    from torch.utils.data import DataLoader

    started = weakref.WeakSet()
    start = DataLoader._get_iterator

    def remember(loader):
        iterator = start(loader)
        started.add(iterator)
        return iterator

    monkeypatch.setattr(DataLoader, '_get_iterator', remember)
    yield
    for iterator in list(started):
        if hasattr(iterator, '_shutdown_workers'):
            iterator._shutdown_workers()


@pytest.fixture(autouse=True)
def fresh_singletons():
    """MMEngine keeps loggers and visualizers by name for a whole process."""
    yield
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.visualization import Visualizer

    todo = [Visualizer, MMLogger, MessageHub]
    while todo:
        kind = todo.pop()
        todo += kind.__subclasses__()
        kind._instance_dict.clear()
