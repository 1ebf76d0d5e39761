"""What is wrong with a config that cannot be read, and where it is.

MMEngine runs the text of a config from a temporary copy, each base of it in
the same way, and merges what they define. The functions that do so are in the
traceback of an error, with the names of the files and keys at which they were.
"""

from __future__ import annotations

import ast
import os
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from mmefficientmod.messages import did_you_mean, shorten

MMENGINE = 'mmengine.config.'
# Functions of MMEngine that read a file, whose name is in `filename`.
READERS = ('_file2dict', '_parse_lazy_import')
# What Python's parser says of text from a string in place of a file name.
NO_FILE = (None, '', '<unknown>', '<string>')

# The function that puts in the variables of `{{ _base_.name }}`.
VARIABLES = '_substitute_base_vars'

Frames = Sequence[tuple[FrameType, int]]


def explain_failure(error: BaseException, path: Path) -> str:
    """Why a config cannot be read, in one sentence without its end.

    Args:
        error: What MMEngine, or the config itself, raised.
        path: The config.

    Returns:
        ``'line 3: NameError: ...'``, with the file if it is a base of the
        config, and with a remedy where there is one. The line is that of the
        user's file.
    """
    # A function that raises an error again is in the traceback twice.
    frames = list(
        {id(x[0]): x for x in traceback.walk_tb(error.__traceback__)}.values()
    )
    files = [
        os.path.abspath(frame.f_locals['filename'])
        for frame, _ in frames
        if _is_mmengine(frame) and frame.f_code.co_name in READERS
    ] or [os.path.abspath(path)]
    if len(set(files)) < len(files):
        names = ' -> '.join(map(_shown, dict.fromkeys(files)))
        return (
            f'its _base_ is a circle, {names} -> {_shown(files[-1])}; remove '
            'one of these _base_'
        )
    if len(files) > 1 and not os.path.isfile(files[-1]):
        missing = files.pop()
        line, reason = _line_of_keys(files[-1], ['_base_']), _no_base(missing)
    else:
        line, reason = _line_and_reason(error, frames, files[-1])
    place = [] if line is None else [f'line {line}']
    if files[-1] != os.path.abspath(path):
        place = [' of '.join([*place, _shown(files[-1])])]
    return ': '.join([*place, reason])


def _no_base(path: str) -> str:
    near = [str(p.name) for p in Path(path).parent.glob('*.py')]
    return (
        f'its base {_shown(path)} does not exist'
        f'{did_you_mean(Path(path).name, near)}'
    )


def _line_and_reason(
    error: BaseException, frames: Frames, file: str
) -> tuple[int | None, str]:
    """The line in a file and what is wrong there.

    Args:
        error: The error.
        frames: Its frames, the outermost first.
        file: The file that was being read.
    """
    for explain in (_bad_text, _bad_syntax, _bad_merge, _bad_import):
        found = explain(error, frames, file)
        if found:
            return found
    line = None
    for frame, number in frames:
        if _is_code_of(frame, file):
            line, last = number, frame
    if line is None:
        return None, _message(error)
    reason = _message(error) + _remedy(error, last)
    inner, number = frames[-1]
    name = inner.f_code.co_filename
    if (
        not _is_code_of(inner, file)
        and not _is_mmengine(inner)
        and os.path.exists(name)
    ):
        reason += f' (raised in {_shown(name)}, line {number})'
    return line, f'{reason}, in `{shorten(_text(file, line), 70)}`'


def _bad_text(
    error: BaseException, frames: Frames, file: str
) -> tuple[int | None, str] | None:
    """A file that is no text, or in another encoding than UTF-8."""
    if not isinstance(error, (UnicodeDecodeError, ValueError, SyntaxError)):
        return None
    if not os.path.isfile(file):
        return None
    data = Path(file).read_bytes()
    if b'\0' in data:
        return None, 'it is no text: it has bytes of the value 0'
    for number, line in enumerate(data.split(b'\n'), 1):
        try:
            line.decode('utf-8')
        except UnicodeDecodeError as bad:
            return number, (
                f'byte 0x{line[bad.start]:02x} is no UTF-8; save the file '
                'with the encoding UTF-8'
            )
    if data.startswith(b'\xef\xbb\xbf') and file.endswith('.py'):
        return 1, (
            'a byte-order mark is in front; save the file as UTF-8 without it'
        )
    return None


def _bad_syntax(
    error: BaseException, frames: Frames, file: str
) -> tuple[int | None, str] | None:
    """What the parsers of Python, JSON and YAML say of a file."""
    for one in _chain(error):
        mark = getattr(one, 'problem_mark', None)  # of YAML
        line = mark.line + 1 if mark else getattr(one, 'lineno', None)
        if line is None:
            continue
        name = one.filename if isinstance(one, SyntaxError) else None
        if name not in NO_FILE and os.path.abspath(str(name)) != file:
            continue  # in a module that the config imports
        text = _text(file, line)
        reason = getattr(one, 'msg', '') or getattr(one, 'problem', '')
        reason = f'{type(one).__name__}: {shorten(reason or str(one))}'
        if '\\' in text:
            reason += '; write paths with / in place of \\'
        return line, f'{reason}, in `{shorten(text, 70)}`'
    if file.endswith(('.json', '.yml', '.yaml')) and isinstance(
        error, (AttributeError, TypeError)
    ):
        return None, 'at its top there must be keys with values'
    return None


def _bad_merge(
    error: BaseException, frames: Frames, file: str
) -> tuple[int | None, str] | None:
    """Keys of a config that do not fit those of its bases."""
    names = {frame.f_code.co_name for frame, _ in frames}
    if names & {'_get_base_files', '_get_cfg_path'}:
        reason = (
            '_base_ must be a path or a list of paths'
            if isinstance(error, TypeError)
            else _message(error)
        )
        return _line_of_keys(file, ['_base_']), reason
    for frame, _ in frames:
        node = frame.f_locals.get('node')
        if _is_mmengine(frame) and isinstance(node, ast.stmt):
            return node.lineno, _message(error)
    inside = [f for f, _ in frames if f.f_code.co_name == VARIABLES]
    last = inside[-1] if inside else frames[-1][0]
    function, values = last.f_code.co_name, last.f_locals
    if not _is_mmengine(last):
        return None
    if function == '_merge_a_into_b' and 'k' in values:
        keys = [
            frame.f_locals['k']
            for frame, _ in frames
            if frame.f_code is last.f_code and 'k' in frame.f_locals
        ]
        old = type(values['b'][values['k']]).__name__
        return _line_of_keys(file, keys), (
            f'{".".join(map(str, keys))} is a dict here and of the type {old} '
            'in its base; write _delete_=True into the dict if it shall '
            'replace it'
        )
    if function == VARIABLES:
        known = _flat_keys(values.get('base_cfg') or {})
        variables = values.get('base_var_dict', {}).values()
        unknown = [name for name in variables if name not in known]
        name = unknown[0] if unknown else '?'
        return _line_with(file, f'_base_.{name}'), (
            f'no base sets the variable of {{{{ _base_.{name} }}}}'
            f'{did_you_mean(name, known)}'
        )
    if function == '_file2dict' and 'duplicate_keys' in values:
        twice = ', '.join(sorted(values['duplicate_keys']))
        return _line_of_keys(file, ['_base_']), (
            f'the base {_shown(values["base_cfg_path"])} sets {twice}, and so '
            'does a base before it; leave one of the bases out, or remove '
            f'{twice} from one and set it in this file'
        )
    if 'var_name' in values:
        name = values['var_name']
        return _line_with(file, f'${name}'), (
            f'the environment variable {name} is not set and has no default'
        )
    if 'base_module' in values and 'module_path' in values:
        line = _line_with(file, f'from {values["base_module"]}')
        return line, _no_base(values['module_path'])
    return None


def _bad_import(
    error: BaseException, frames: Frames, file: str
) -> tuple[int | None, str] | None:
    """A module that ``custom_imports`` or a pure-Python config names."""
    chain = list(_chain(error))
    for one in chain:
        for frame, _ in traceback.walk_tb(one.__traceback__):
            lazy = frame.f_locals.get('self')
            where = getattr(lazy, 'location', None)
            if frame.f_code.co_name == 'build' and isinstance(where, str):
                line = re.search(r'line (\d+)', where)
                text = _message(chain[-1])
                # An attribute of a module has other names for both, and no
                # line in its place.
                module = vars(lazy).get('_module', '')
                if not isinstance(module, str):
                    module = ', '.join(module)
                imported = vars(lazy).get('_imported') or vars(lazy).get(
                    'name'
                )
                if chain[-1] is error:
                    text = f'the module {module} has no {imported!r}'
                number = int(line[1]) if line else None
                if number is None and imported:
                    number = _line_with(file, f'.{imported}')
                return number, (f'cannot import {imported or module}: {text}')
    last = frames[-1][0]
    if last.f_code.co_name == 'fromfile' and isinstance(error, TypeError):
        return _line_of_keys(file, ['custom_imports']), (
            'custom_imports must be dict(imports=[...])'
        )
    if any(
        frame.f_code.co_name == 'import_modules_from_strings'
        for one in chain
        for frame, _ in traceback.walk_tb(one.__traceback__)
    ):
        text = _message(chain[-1])
        inner = list(traceback.walk_tb(chain[-1].__traceback__))[-1:]
        for frame, number in inner:
            name = frame.f_code.co_filename
            if os.path.exists(name):
                text += f' (raised in {_shown(name)}, line {number})'
        return _line_of_keys(file, ['custom_imports']), (
            f'custom_imports names a module that cannot be imported: {text}; '
            'install it, or put its folder into PYTHONPATH'
        )
    return None


def _remedy(error: BaseException, frame: FrameType) -> str:
    """What to write instead of a name that does not exist."""
    base = frame.f_globals.get('_base_')
    base = base if isinstance(base, Mapping) else {}
    if isinstance(error, NameError):
        name = error.name or ''
        if name in base:
            return f'; a variable of a base is written _base_.{name}'
        return did_you_mean(name, [*frame.f_globals])
    if isinstance(error, AttributeError):
        name = str(error).rpartition("attribute '")[2].strip("'")
        return did_you_mean(name, _flat_keys(base))
    if isinstance(error, ModuleNotFoundError):
        return '; install it, or put its folder into PYTHONPATH'
    return ''


def _message(error: BaseException) -> str:
    """Type and first line of an error's text."""
    try:
        text = str(error.args[0] if isinstance(error, KeyError) else error)
    except Exception:  # of a class of the config
        text = ''
    return f'{type(error).__name__}: {shorten(text)}'


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it, the first one last."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_mmengine(frame: FrameType) -> bool:
    return str(frame.f_globals.get('__name__')).startswith(MMENGINE)


def _is_code_of(frame: FrameType, file: str) -> bool:
    """Whether a frame runs the text of a config."""
    name = frame.f_code.co_filename
    # MMEngine evaluates the value of `_base_` without a file name.
    return name == '' or os.path.abspath(name) == file


def _shown(file: str) -> str:
    """A path, relative if it is below the working directory."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here) if here in path.parents else path)


def _text(file: str, line: int) -> str:
    """A line of a file."""
    lines = Path(file).read_text('utf-8', 'replace').splitlines()
    return lines[line - 1] if line <= len(lines) else ''


def _line_with(file: str, part: str) -> int | None:
    """The first line of a file with a text in it."""
    lines = Path(file).read_text('utf-8', 'replace').splitlines()
    return next((n for n, x in enumerate(lines, 1) if part in x), None)


def _line_of_keys(file: str, keys: Sequence[Any]) -> int | None:
    """The line of a config on which nested keys are set.

    Args:
        file: The config.
        keys: The variable, and the keys below it.

    Returns:
        The line of the innermost key that is written in the file; None if the
        file does not set the variable.
    """
    try:
        tree = ast.parse(Path(file).read_text('utf-8'))
    except (SyntaxError, ValueError):
        return _line_with(file, str(keys[0]))
    node: ast.AST | None = None
    line = None
    for top in tree.body:
        if isinstance(top, ast.Assign) and keys[0] in (
            target.id for target in top.targets if isinstance(target, ast.Name)
        ):
            node, line = top.value, top.lineno
    for key in keys[1:]:
        node = _child(node, key)
        if node is None:
            break
        line = getattr(node, 'lineno', line)
    return line


def _child(node: ast.AST | None, key: Any) -> ast.AST | None:
    """The value of a key in ``dict(key=...)`` or ``{'key': ...}``."""
    if isinstance(node, ast.Call):
        return next((k.value for k in node.keywords if k.arg == key), None)
    if isinstance(node, ast.Dict):
        for name, value in zip(node.keys, node.values, strict=True):
            if isinstance(name, ast.Constant) and name.value == key:
                return value
    return None


def _flat_keys(values: Mapping[str, Any], before: str = '') -> list[str]:
    """The keys of nested dicts, with dots between their parts."""
    keys = []
    for key, value in values.items():
        keys.append(f'{before}{key}')
        if isinstance(value, Mapping):
            keys += _flat_keys(value, f'{before}{key}.')
    return keys
