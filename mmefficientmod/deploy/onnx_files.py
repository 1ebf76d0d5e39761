"""Writing a graph as ONNX, with a description in the file."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.graph import BATCH, HEIGHT, WIDTH
from mmefficientmod.deploy.layouts.dimensions import name_dimensions
from mmefficientmod.deploy.rewriting import rewritten
from mmefficientmod.messages import shorten

IMAGE = 'image'
# PyTorch 2.1, which has only this exporter, has no later opset. From 20 on,
# ONNX has GELU as one operator, which int8 needs.
HAS_DYNAMO = 'dynamo' in inspect.signature(torch.onnx.export).parameters
OPSET = 20 if HAS_DYNAMO else 17
CPU = 'CPUExecutionProvider'


def write_onnx(
    graph: nn.Module,
    image: Tensor,
    path: str | os.PathLike,
    outputs: Mapping[str, Mapping[int, str]] | None = None,
    batch: bool = False,
    size: bool = False,
    opset: int = OPSET,
) -> None:
    """Record a graph and write it as ONNX.

    Both stacks have the exporter that traces. The newer one
    (``dynamo=True``) takes tens of seconds instead of seconds, and its files
    are not faster.

    Args:
        graph: Takes an image, returns tensors; put in evaluation mode.
        image: An example of the input.
        path: The file.
        outputs: Names of the outputs, and of their dimensions that may
            differ. Default: the exporter's names.
        batch: Whether the number of images may differ. Default: False.
        size: Whether height and width may differ. Default: False.
        opset: Version of ONNX's operators. Default: the newest that the
            installed PyTorch writes.

    Raises:
        ConfigError: If onnx is not installed, or the graph has an operation
            that cannot be written.
    """
    require('onnx')
    arguments: dict[str, Any] = dict(opset_version=opset, input_names=[IMAGE])
    if outputs is not None:
        arguments['output_names'] = list(outputs)
        arguments['dynamic_axes'] = _dynamic_axes(image, outputs, batch, size)
    if HAS_DYNAMO:  # PyTorch 2.1 does not have the argument
        arguments['dynamo'] = False
    # The exporter restores the mode of the graph that it was given, and a
    # folded model refuses any other mode than eval.
    graph.eval()
    try:
        with silence(), torch.no_grad(), rewritten():
            torch.onnx.export(graph, (image,), str(path), **arguments)
    except ConfigError:
        raise
    except Exception as error:
        # The exporter's message has the graph behind its first lines.
        lines = str(error).strip().splitlines() or ['']
        raise ConfigError(
            'the model cannot be written as ONNX '
            f'({type(error).__name__}: {shorten(lines[0])})'
        ) from error


def _dynamic_axes(
    image: Tensor,
    outputs: Mapping[str, Mapping[int, str]],
    batch: bool,
    size: bool,
) -> dict[str, dict[int, str]]:
    """The dimensions that may differ, of the input and the outputs."""
    channels_last = image.dtype == torch.uint8
    names = (
        {0: BATCH, 1: HEIGHT, 2: WIDTH}
        if channels_last
        else {0: BATCH, 2: HEIGHT, 3: WIDTH}
    )

    def varies(name: str) -> bool:
        if name == BATCH:
            return batch
        if name.startswith((HEIGHT, WIDTH)):
            return size
        return True

    return {
        key: {i: name for i, name in axes.items() if varies(name)}
        for key, axes in {IMAGE: names, **outputs}.items()
    }


def describe(path: str | os.PathLike, metadata: Mapping[str, str]) -> None:
    """Write a description into an ONNX file, and check the file.

    Args:
        path: The file.
        metadata: Text by name.
    """
    import onnx

    model = onnx.load(os.fspath(path))
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name = 'mmefficientmod'
    onnx.checker.check_model(model)
    onnx.save(model, os.fspath(path))


def name_sizes(path: str | os.PathLike) -> None:
    """Name equal sizes in an ONNX file, so that ONNX Runtime knows them.

    Args:
        path: The file, replaced.
    """
    import onnx

    model = name_dimensions(onnx.load(os.fspath(path)))
    onnx.save(model, os.fspath(path))


def drop_outputs(
    source: str | os.PathLike, path: str | os.PathLike, names: Sequence[str]
) -> None:
    """Write an ONNX file without some of its outputs.

    Args:
        source: The file.
        path: The file to write.
        names: The outputs that it shall not have.
    """
    import onnx

    model = onnx.load(os.fspath(source))
    kept = [x for x in model.graph.output if x.name not in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)
    onnx.save(model, os.fspath(path))


def halve(path: str | os.PathLike) -> None:
    """Convert the weights and activations of an ONNX file to float16.

    Input and outputs stay float32, and so do operators that ONNX Runtime has
    for float32 alone.

    Args:
        path: The file, replaced.
    """
    require('onnxruntime')
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with silence():
        model = OnnxModel(
            convert_float_to_float16(
                onnx.load(os.fspath(path)), keep_io_types=True
            )
        )
        # The casts of the input are behind the nodes that read them.
        model.topological_sort()
    onnx.save(model.model, os.fspath(path))


def open_session(
    model: str | os.PathLike | bytes,
    threads: int | None = None,
    provider: str = CPU,
    **settings: Any,
) -> Any:
    """Load a model in ONNX Runtime.

    Args:
        model: An ONNX file, or its content.
        threads: CPU threads of an operator. Default: ONNX Runtime's choice.
        provider: What runs it. Default: the CPU.
        **settings: Attributes of ``onnxruntime.SessionOptions``.

    Returns:
        The ``onnxruntime.InferenceSession``.

    Raises:
        ConfigError: If onnxruntime is not installed.
    """
    require('onnxruntime')
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if threads:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    for name, value in settings.items():
        setattr(options, name, value)
    content = model if isinstance(model, bytes) else os.fspath(model)
    return onnxruntime.InferenceSession(content, options, providers=[provider])


def require(module: str, extra: str = 'export') -> None:
    """Check that a library of an extra is installed.

    Args:
        module: The module to import.
        extra: The extra of this package that installs it.

    Raises:
        ConfigError: If it is not.
    """
    try:
        __import__(module)
    except ImportError as error:
        raise ConfigError(
            f'{error.name or module} is not installed: pip install '
            f"'mmefficientmod[{extra}]'"
        ) from None


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop what the exporter prints, and its warnings."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter('ignore')
        yield
