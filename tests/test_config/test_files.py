"""A config that cannot be read: one sentence with the file and the line."""

import re

import pytest

from mmefficientmod.config.files import load_config
from mmefficientmod.config.nodes import ConfigError

BASE = 'lr = 3\nmodel = dict(neck=[1], head=dict(a=1))\n'

# The text of c.py, which has b.py as a base where the text says so; what is
# said of it.
FAULTS = {
    'undefined name': (
        "_base_ = 'b.py'\nx = dict(y=lr)",
        r'line 2: NameError: .* a variable of a base is written _base_\.lr',
    ),
    'misspelt name': (
        'rate = 1\nx = [rat]',
        r'line 2: NameError: .*did you mean rate\?, in `x = \[rat\]`',
    ),
    'attribute of the base': (
        "_base_ = 'b.py'\n\nx = _base_.models",
        r'line 3: AttributeError: .*did you mean model\?',
    ),
    'variable of the base': (
        "_base_ = 'b.py'\nx = {{_base_.mode}}",
        r'line 2: no base sets .*_base_\.mode.*did you mean model\?',
    ),
    'nested variable of the base': (
        "_base_ = 'b.py'\ny = 1\nx = dict(z={{_base_.model.hed}})",
        r'line 3: no base sets .*did you mean model\.head\?',
    ),
    'variable below a number': (
        "_base_ = 'b.py'\nx = {{_base_.lr.value}}",
        r'line 2: no base sets',
    ),
    'dict over a list': (
        "_base_ = 'b.py'\nmodel = dict(\n    head=dict(a=2),\n"
        '    neck=dict(b=1))',
        r'line 4: model\.neck is a dict here and of the type list.*_delete_',
    ),
    'dict over a number': (
        "_base_ = 'b.py'\nlr = {'b': 1}",
        r'line 2: lr is a dict here and of the type int',
    ),
    'key in two bases': (
        "x = 1\n_base_ = ['b.py', 'b2.py']",
        r'line 2: the base b2\.py sets lr, and so does a base before it',
    ),
    'fault in a base': ("_base_ = 'bad.py'", r'line 2 of bad\.py: ZeroDiv'),
    'missing base': (
        "\n_base_ = 'bb.py'",
        r'line 2: its base bb\.py does not exist; did you mean b\.py\?',
    ),
    'missing base of a toolbox': (
        "\n\n_base_ = 'mmseg::nowhere/at_all.py'",
        r'line 3: ',
    ),
    'base of an unknown package': ("_base_ = 'mmnone::a/b.py'", r'line 1: '),
    'base that is no path': ('_base_ = [3]', r'line 1: _base_ must be a'),
    'base that is a folder': ("_base_ = '.'", r'line 1: its base '),
    'exception without a text': (
        'class E(Exception):\n    def __str__(self):\n        return 3\n'
        'raise E',
        r'line 4: E: no message, in `raise E`',
    ),
    'circle': (
        "_base_ = 'circle.py'",
        r'its _base_ is a circle, c\.py -> circle\.py -> c\.py',
    ),
    'syntax': ('a = 1\nmodel = dict(', r"line 2: SyntaxError: '\(' was"),
    'indentation': ('a = 1\n  b = 2', r'line 2: IndentationError'),
    'return': ('a = 1\nreturn a', r"line 2: SyntaxError: 'return' outside"),
    'Windows path': (
        "a = 1\ndata_root = 'C:\\Users\\me'",
        r'line 2: SyntaxError: .*write paths with / in place of',
    ),
    'Windows folder': (
        "data_root = 'C:\\data\\'",
        r'line 1: SyntaxError: .*write paths with /',
    ),
    'division': ('\nx = 1 / 0', r'line 2: ZeroDivisionError: .*`x = 1 / 0`'),
    'missing key': ("d = {}\nx = d['k']", r'line 2: KeyError: k'),
    'missing module': (
        'import json\nimport numpi',
        r"cannot import numpi: .*No module named 'numpi'",
    ),
    'exit': ('import sys\nsys.exit(3)', r'line 2: SystemExit: 3'),
    'own exception': (
        "def f():\n    raise OSError('a\\nb')\nf()",
        r'line 2: OSError: a, in',
    ),
    'custom import': (
        "a = 1\ncustom_imports = dict(imports=['no_such'])",
        r"line 2: custom_imports .*No module named 'no_such'.*PYTHONPATH",
    ),
    'custom import with a fault': (
        "custom_imports = dict(imports=['faulty_module_of_test'])",
        r'line 1: .*ZeroDiv.* \(raised in faulty_module_of_test\.py, line 3\)',
    ),
    'custom import as a text': (
        "custom_imports = 'json'",
        r'line 1: custom_imports must be dict\(imports=',
    ),
    'custom import of a type': (
        'custom_imports = dict(imports=3)',
        r'line 1: custom_imports',
    ),
    'variable of the environment': (
        "a = 1\nb = '{{$NO_SUCH_VARIABLE:}}'",
        r'line 2: the environment variable NO_SUCH_VARIABLE is not set',
    ),
    'pure-Python import': (
        'from torch.optim import SGD\nfrom torch.optim import AdamX\n'
        'o = dict(type=AdamX)',
        r"line 2: cannot import AdamX: the module torch\.optim has no 'AdamX'",
    ),
    'pure-Python module': (
        'from no_such.place import Net\nmodel = dict(type=Net)',
        r"line 1: cannot import Net: .*No module named 'no_such'",
    ),
    'pure-Python attribute': (
        'import torch.nn as nn\n\nx = dict(type=nn.NoSuch)',
        r"line 3: cannot import NoSuch: .* no attribute 'NoSuch'",
    ),
    'pure-Python variable': (
        'from mmengine.config import read_base\nwith read_base():\n'
        '    from .b import nothing',
        r'line 3: KeyError: nothing',
    ),
    'pure-Python base': (
        'from mmengine.config import read_base\nwith read_base():\n'
        '    from .nowhere import *',
        r'line 3: ',
    ),
    'pure-Python fault': (
        'from torch.optim import SGD\nx = dict(y=z)',
        r"line 2: NameError: name 'z'",
    ),
    'with': ('a = 1\nwith open("c.py"):\n    b = 2', r'line 2: .*read_base'),
    'empty': ('', r'c\.py is empty'),
    'comment': ('# nothing', r'c\.py is empty'),
    'GBK': ('a = 1\n# 数据'.encode('gbk'), r'line 2: byte 0xca is no UTF-8'),
    'binary': (b'\x80\x02\0\0', r'it is no text'),
    'byte-order mark': (
        b'\xef\xbb\xbfa = 1',
        r'line 1: a byte-order mark is in front',
    ),
}
OTHERS = {
    'b.py': BASE,
    'b2.py': 'lr = 4',
    'bad.py': 'a = 1\nb = a / 0',
    'circle.py': "_base_ = 'c.py'",
    'faulty_module_of_test.py': 'a = 1\n\nb = 1 / 0\n',
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with the bases."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in OTHERS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def message_of(name):
    with pytest.raises(ConfigError) as error:
        load_config(name)
    message = str(error.value)
    assert '\n' not in message
    assert len(message) < 500
    return error, message


@pytest.mark.parametrize(('text', 'said'), FAULTS.values(), ids=FAULTS)
def test_unreadable_config_is_explained_with_its_line(place, text, said):
    data = text if isinstance(text, bytes) else text.encode()
    (place / 'c.py').write_bytes(data)
    error, message = message_of('c.py')
    assert message.startswith('config c.py ')
    assert error.match(said), message
    # MMEngine executes a copy of the config with a random name.
    assert not re.search(r'/tmp\w{8}\b', message)


@pytest.mark.parametrize(
    ('name', 'text', 'said'),
    [
        ('c.json', '{"a": 1,\n "b": }', r'line 2: JSONDecodeError'),
        ('c.json', '[1]', r'at its top'),
        ('c.yml', 'a: 1\nb: [1\n', r'line 3: ParserError'),
        ('c.yaml', 'a: 1\n\tb: 2\n', r'line 2: ScannerError'),
        ('c.txt', 'a = 1', r'Only py/yml/yaml/json'),
    ],
)
def test_file_of_another_format_is_explained(place, name, text, said):
    (place / name).write_text(text)
    error, message = message_of(name)
    assert error.match(said), message


def test_readable_configs_are_read(place):
    (place / 'c.py').write_text(
        "_base_ = 'b.py'\nmodel = dict(neck=dict(_delete_=True, b=1))\n"
        'x = _base_.lr + 1\ny = {{_base_.model.head}}'
    )
    cfg = load_config('c.py')
    assert (cfg.x, cfg.y.a, cfg.model.neck.b) == (4, 1, 1)
    (place / 'c.json').write_text('{"_base_": "b.py", "lr": 5}')
    assert load_config('c.json').lr == 5
