"""Reading the values in the text of a config, without running it.

MMEngine stores the config of a training as Python text in its checkpoints, and
reads it by running it.
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from typing import Any

MOST_CHARACTERS = 500_000
MOST_BRACKETS = 90
TOKENS = (
    tokenize.NAME,
    tokenize.NUMBER,
    tokenize.STRING,
    tokenize.COMMENT,
    tokenize.NEWLINE,
    tokenize.NL,
    tokenize.ENDMARKER,
)


def read_literals(text: str) -> dict[str, Any]:
    """The variables of a config's text that have plain values.

    Args:
        text: Assignments of numbers, strings, lists, tuples, dicts, and
            ``dict(key=value)``, as ``Config.pretty_text`` writes them.

    Returns:
        The values by name. Calls of other functions are None.

    Raises:
        ValueError: If the text has anything else than such assignments, or is
            too long or too deep for a config.
    """
    try:
        _check_tokens(text)
        tree = ast.parse(text)
    except (SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f'the text is no config: {error}') from None
    values = {}
    for line in tree.body:
        if isinstance(line, ast.Assign) and len(line.targets) == 1:
            target = line.targets[0]
            if isinstance(target, ast.Name):
                values[target.id] = _value(line.value)
    return values


def _check_tokens(text: str) -> None:
    """Refuse text with other tokens than those of plain values.

    Python's parser crashes for expressions of many operators, attributes or
    calls in a row, at least until Python 3.10.
    """
    if len(text) > MOST_CHARACTERS or '\0' in text:
        raise ValueError('the text is too long for a config')
    depth, before = 0, ''
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        value = token.string
        if token.type == tokenize.OP:
            depth += (value in ('(', '[', '{')) - (value in (')', ']', '}'))
            plain = value in '()[]{},:=-' and not (
                (before in (')', ']', '}') and value in ('(', '['))
                or before == value == '-'
            )
        elif token.type == tokenize.STRING:
            plain = 'f' not in value[: value.find(value[-1])].lower()
        else:
            plain = token.type in TOKENS and (
                value in ('None', 'True', 'False')
                or not keyword.iskeyword(value)
            )
        if not plain or depth > MOST_BRACKETS:
            raise ValueError(f'the text is no config: {value[:20]!r} in it')
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            before = value


def _value(node: ast.expr | None) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand)
        return -value if isinstance(value, (int, float)) else None
    if isinstance(node, ast.List):
        return [_value(element) for element in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(element) for element in node.elts)
    if isinstance(node, ast.Dict):
        return {
            key.value: _value(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == 'dict'
        and not node.args
    ):
        return {k.arg: _value(k.value) for k in node.keywords if k.arg}
    return None
