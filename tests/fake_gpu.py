"""A GPU that is not there: tensors with shape, dtype and device, no values.

PyTorch's ``FakeTensorMode`` computes the shape, dtype and device of each
result, and raises for operands on different devices. A model whose weights
are on the fake GPU so finds each tensor that its code leaves on the CPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torchvision  # noqa: F401  # defines the ops of torchvision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

NEEDS_FAKES = pytest.mark.skipif(
    torch.__version__ < '2.3',
    reason='torch 2.1 asks the CUDA driver even for fake tensors',
)
aten = torch.ops.aten
# A tensor in memory, such as the anchors that MMDetection keeps in a list,
# counts as one on the CPU.
MODE = FakeTensorMode(allow_non_fake_inputs=True)
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}


class WithoutValues(TorchDispatchMode):
    """Answers what tensors without values cannot: here all masks are true.

    A truth value that is read is True, a number 0, all elements of a tensor
    are unique, and no box suppresses another.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Replace the operations whose result depends on values."""
        x = args[0] if args else None
        if func is aten._local_scalar_dense.default:
            if x.dtype == torch.bool:
                return True
            return 0.0 if x.is_floating_point() else 0
        if func is aten.nonzero.default:
            return _indices(x.numel(), x.ndim, like=x)
        if func is aten.masked_select.default:
            return x.new_empty(
                torch.broadcast_shapes(x.shape, args[1].shape)
            ).flatten()
        if func is aten._unique2.default:
            index = _indices(x.numel(), like=x)
            return x.new_empty(x.numel()), index, index.clone()
        if func is torch.ops.torchvision.nms.default:
            return _indices(len(x), like=x)
        if func in INDEXING:
            args = (x, _without_masks(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _indices(*shape: int, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=torch.long, device=like.device)


def _without_masks(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices of all elements in place of each mask."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            found += [_indices(index.numel(), like=index) for _ in index.shape]
        else:
            found.append(index)
    return found


@contextmanager
def fake_gpu(dtype: torch.dtype | None = None) -> Iterator[None]:
    """Within a block, tensors are fake and ``device='cuda'`` exists.

    Args:
        dtype: That of the autocast on the GPU. Default: no autocast.
    """
    with MODE, WithoutValues(), pytest.MonkeyPatch.context() as patch:
        # The copy of a tensor without values would read memory it has not.
        patch.setattr(
            FakeTensor,
            '__deepcopy__',
            lambda x, memo: x.detach().clone(),
            raising=False,
        )
        # Without a GPU, autocast would switch itself off.
        patch.setattr(
            torch.cuda.amp.common,
            'amp_definitely_not_available',
            lambda: False,
        )
        patch.setattr(torch.cuda, 'is_bf16_supported', lambda *_: True)
        with torch.autocast('cuda', dtype, enabled=dtype is not None):
            yield


def to_fake_gpu(model: nn.Module) -> nn.Module:
    """Replace all parameters and buffers by fake ones on the GPU, in place.

    ``Module.to`` fails with fake tensors.
    """
    moved: dict[int, Tensor] = {}
    with fake_gpu():
        for module in model.modules():
            for tensors in module._parameters, module._buffers:
                for name, x in tensors.items():
                    if x is None:
                        continue
                    if id(x) not in moved:
                        moved[id(x)] = _on_fake_gpu(x)
                    tensors[name] = moved[id(x)]
    return model


def _on_fake_gpu(x: Tensor) -> Tensor:
    fake = torch.empty_strided(
        x.shape, x.stride(), dtype=x.dtype, device='cuda'
    )
    if isinstance(x, nn.Parameter):
        return nn.Parameter(fake, requires_grad=x.requires_grad)
    return fake


@torch.no_grad()
def backward(outs: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """The gradients of all parameters, for a gradient of 1 of each output.

    PyTorch's engine starts a thread for each GPU, so that it needs one. This
    calls the functions of the graph one after another instead. A gradient
    of another dtype than that of its tensor is converted, as by the engine.
    It must be on the same device.
    """
    given: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    for out in outs:
        given[out.grad_fn][out.output_nr] = torch.ones_like(out)
    grads: dict[Tensor, Tensor] = {}
    for node in _sorted_nodes([out.grad_fn for out in outs]):
        found = given.pop(node)
        if hasattr(node, 'variable'):
            grads[node.variable] = found[0]
            continue
        wanted = [found.get(i) for i in range(len(node._input_metadata))]
        if isinstance(node, BackwardCFunction):
            # None for each argument that is no tensor.
            results = [x for x in node.apply(*wanted) if x is not None]
        else:
            results = node(*wanted)
            results = results if isinstance(results, tuple) else [results]
        for result, (target, index) in zip(
            results, node.next_functions, strict=True
        ):
            if target is None or result is None:
                continue
            meta = target._input_metadata[index]
            assert result.device == meta.device, node
            result = result.sum_to_size(meta.shape).to(meta.dtype)
            into = given[target]
            into[index] = into[index] + result if index in into else result
    return grads


def _sorted_nodes(roots: Sequence[Any]) -> list[Any]:
    """All nodes of a graph, each before those it passes gradients to."""
    done: list[Any] = []
    seen = set()
    stack = [(root, False) for root in roots]
    while stack:
        node, is_left = stack.pop()
        if is_left:
            done.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(x, False) for x, _ in node.next_functions if x]
    return done[::-1]
