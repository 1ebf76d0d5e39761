"""Names of dimensions inside a file, by which equal sizes are seen.

ONNX Runtime keeps a product or a sum in its blocked layout only if it knows
that both inputs have one size. With dynamic height and width, the shapes in a
file must say so: its own inference gives each convolution new sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ELEMENTWISE = frozenset({'Add', 'Sub', 'Mul', 'Div'})


def name_dimensions(model: Any) -> Any:
    """A model with shapes inside, in which equal sizes have one name.

    Args:
        model: An ``onnx.ModelProto``.

    Returns:
        The model with a shape for each tensor, where it can be inferred; the
        operations are the same.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    values = [*graph.input, *graph.value_info, *graph.output]
    shapes = {x.name: x.type.tensor_type.shape.dim for x in values}
    same: dict[str, str] = {}

    def name(dim: Any) -> str:
        found = dim.dim_param
        while found in same:
            found = same[found]
        return found

    def join(first: Sequence[Any], second: Sequence[Any]) -> None:
        """Note that sizes are equal; a name of the second is kept."""
        for one, other in zip(first, second, strict=True):
            a, b = name(one), name(other)
            if a and b and a != b:
                same[a] = b

    for node in graph.node:
        inputs = [shapes[x] for x in node.input if x in shapes]
        output = shapes.get(node.output[0])
        if not inputs or output is None or len(output) != 4:
            continue
        if node.op_type == 'Conv':
            if _keeps_size(node):
                join(list(output)[2:], list(inputs[0])[2:])
        elif node.op_type in ELEMENTWISE or node.op_type == 'Concat':
            sized = [x for x in inputs if len(x) == 4]
            axes = {0, 1, 2, 3}
            if node.op_type == 'Concat':
                axes.discard(_attributes(node)['axis'] % 4)
            for axis in axes:
                dims = [x[axis] for x in sized]
                names = {name(x) for x in dims}
                if len(dims) > 1 and len(names) == 1 and '' not in names:
                    join([output[axis]], dims[:1])
    # The names of inputs and outputs, which the user reads, are kept.
    given = {
        name(dim): dim.dim_param
        for value in (*graph.output, *graph.input)
        for dim in shapes[value.name]
    }
    for value in graph.value_info:
        for dim in shapes[value.name]:
            if dim.dim_param:
                dim.dim_param = given.get(name(dim)) or name(dim)
    return model


def _keeps_size(node: Any) -> bool:
    """Whether a convolution's output has the size of its input."""
    given = _attributes(node)
    kernel = given.get('kernel_shape')
    if kernel is None or {*given.get('dilations', [1])} != {1}:
        return False
    pads = given.get('pads', [0] * 2 * len(kernel))
    total = [a + b for a, b in zip(pads, pads[len(kernel) :], strict=False)]
    return {*given.get('strides', [1])} == {1} and total == [
        k - 1 for k in kernel
    ]


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
