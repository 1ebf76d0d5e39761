"""Writing a graph for ncnn, by pnnx."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mmefficientmod.config.nodes import ConfigError
from mmefficientmod.deploy.onnx_files import require, silence
from mmefficientmod.deploy.rewriting import rewritten
from mmefficientmod.messages import shorten


def write_ncnn(
    graph: nn.Module,
    image: Tensor,
    path: str | os.PathLike,
    metadata: Mapping[str, str],
    half: bool = False,
) -> list[Path]:
    """Record a graph and convert it.

    Args:
        graph: Takes an image, returns tensors; in evaluation mode.
        image: An example of the input, ``(1, 3, H, W)``.
        path: The ``.param`` file to write; the weights and the description
            are beside it.
        metadata: The description, text by name.
        half: Whether the weights are stored as float16. Default: False.

    Returns:
        The files ``.bin``, ``.json`` and ``.param``.

    Raises:
        ConfigError: If pnnx is not installed, or cannot convert the graph to
            operators of ncnn.
    """
    require('pnnx', 'ncnn')
    import pnnx

    with tempfile.TemporaryDirectory() as folder:
        with silence(), torch.no_grad(), rewritten():
            traced = torch.jit.trace(graph, image, check_trace=False)
        traced.save(str(Path(folder, 'model.pt')))
        shape = ','.join(map(str, image.shape))
        run = subprocess.run(
            [
                pnnx.EXEC_PATH,
                'model.pt',
                f'inputshape=[{shape}]f32',
                f'fp16={int(half)}',
            ],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        written = [
            Path(folder, f'model.ncnn.{kind}') for kind in ('bin', 'param')
        ]
        unknown = _unknown_operators(written[1])
        if run.returncode or unknown or not all(x.exists() for x in written):
            lines = (run.stdout + run.stderr).strip().splitlines() or ['']
            reason = (
                f'ncnn does not have {", ".join(unknown)}'
                if unknown
                else shorten(lines[-1])
            )
            raise ConfigError(
                f'the model cannot be converted for ncnn ({reason})'
            )
        files = [Path(path).with_suffix(x.suffix) for x in written]
        for source, target in zip(written, files, strict=True):
            shutil.copyfile(source, target)
    description = Path(path).with_suffix('.json')
    description.write_text(json.dumps(dict(metadata), indent=2))
    return [files[0], description, files[1]]


def _unknown_operators(path: Path) -> list[str]:
    """Operators that pnnx left in its own form."""
    if not path.exists():
        return []
    # The first two lines are a magic number and counts.
    names = {line.split()[0] for line in path.read_text().splitlines()[2:]}
    return sorted(x for x in names if '.' in x or '::' in x)
