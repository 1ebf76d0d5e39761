"""What of a model is run: a forward pass, a training step, an exported one."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import PixelData
from torch import Tensor, nn

from mmefficientmod.analysis.complexity import Network
from mmefficientmod.config.nodes import ConfigError

MODES = ('infer', 'train', 'compile', 'compile-train', 'onnxruntime')
DTYPES = dict(fp32=torch.float32, bf16=torch.bfloat16, fp16=torch.float16)
# About as many as an image of COCO has on average.
OBJECTS = 7


@dataclass(frozen=True)
class Case:
    """What models are compared at.

    Attributes:
        mode: One of :data:`MODES`.
        batch: Images at once.
        height: Of an image, in pixels.
        width: Of an image, in pixels.
        dtype: A key of :data:`DTYPES`; other than fp32 means autocast.
        threads: Of the CPU, for one operator.
    """

    mode: str
    batch: int
    height: int
    width: int
    dtype: str
    threads: int

    @property
    def training(self) -> bool:
        """Whether a backward pass is run."""
        return self.mode.endswith('train')

    @property
    def compiled(self) -> bool:
        """Whether ``torch.compile`` is at work."""
        return self.mode.startswith('compile')

    @property
    def eager(self) -> Case:
        """The same without compiling or exporting anything."""
        mode = 'train' if self.training else 'infer'
        return dataclasses.replace(self, mode=mode)

    def __str__(self) -> str:
        size = f'{self.batch}x3x{self.height}x{self.width}'
        threads = f'{self.threads} thread{"s" * (self.threads > 1)}'
        return f'{self.mode}, {size}, {self.dtype}, {threads}'


class Loss(nn.Module):
    """The sum of a toolbox's model's losses, for made-up annotations.

    Args:
        model: A detector, a segmentor or a classifier.
        case: What it is run on.
        device: Where the annotations go.
    """

    def __init__(
        self, model: BaseModel, case: Case, device: torch.device
    ) -> None:
        super().__init__()
        self.model = model
        self.data_samples = annotations(model, case, device)

    def forward(self, image: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to a scalar."""
        losses = self.model(image, self.data_samples, mode='loss')
        return self.model.parse_losses(losses)[0]


def annotations(
    model: nn.Module, case: Case, device: torch.device
) -> list[Any]:
    """Random annotations for a batch, of the kind that a model learns from.

    Args:
        model: A detector (boxes and masks, 7 objects an image), a segmentor
            (a class for each pixel) or a classifier.
        case: Number and size of the images.
        device: Where they go.

    Raises:
        ConfigError: If the model is nothing of that.
    """
    size = (case.height, case.width)
    toolbox = next(
        (
            name
            for kind in type(model).__mro__
            if (name := kind.__module__.split('.')[0])
            in ('mmdet', 'mmseg', 'mmpretrain')
        ),
        None,
    )
    if toolbox == 'mmdet':
        from mmdet.testing import demo_mm_inputs

        samples = demo_mm_inputs(
            case.batch,
            (3, *size),
            num_items=[OBJECTS] * case.batch,
            with_mask=True,
            device=device,
        )['data_samples']
    elif toolbox == 'mmseg':
        from mmseg.structures import SegDataSample

        samples = [SegDataSample() for _ in range(case.batch)]
        for sample in samples:
            labels = torch.randint(
                model.num_classes, (1, *size), device=device
            )
            sample.gt_sem_seg = PixelData(data=labels)
    elif toolbox == 'mmpretrain':
        from mmpretrain.structures import DataSample

        samples = [
            DataSample().set_gt_label(0).to(device) for _ in range(case.batch)
        ]
    else:
        raise ConfigError(
            f'{type(model).__name__} cannot be trained here: only detectors, '
            'segmentors and classifiers get annotations'
        )
    for sample in samples:
        sample.set_metainfo(
            dict(
                img_shape=size,
                ori_shape=size,
                pad_shape=size,
                batch_input_shape=size,
                scale_factor=(1.0, 1.0),
            )
        )
    return samples


def give_proposals(model: nn.Module, case: Case) -> None:
    """Have the second stage of a detector get boxes that are always the same.

    The RPN works as before. But which boxes it proposes hangs on the weights,
    random as a rule, and how long RoIAlign takes hangs on their sizes.

    Args:
        model: A model. What has no RPN is left as it is.
        case: What it is run on.
    """
    head = getattr(model, 'rpn_head', None)
    if head is None:
        return

    def replace(results: Sequence[Any]) -> None:
        for result in results:
            boxes = proposals(len(result), case.height, case.width)
            result.bboxes = boxes.to(result.bboxes)

    predict, loss_and_predict = head.predict, head.loss_and_predict

    def predict_same(*args: Any, **kwargs: Any) -> Any:
        results = predict(*args, **kwargs)
        replace(results)
        return results

    def loss_and_predict_same(*args: Any, **kwargs: Any) -> Any:
        losses, results = loss_and_predict(*args, **kwargs)
        replace(results)
        return losses, results

    head.predict = predict_same
    head.loss_and_predict = loss_and_predict_same


def proposals(number: int, height: int, width: int) -> Tensor:
    """Boxes ``(number, 4)``, as x1, y1, x2, y2, the same in each call.

    Anywhere in the image; the logarithm of each side is uniformly distributed
    between that of 16 pixels and that of the image's side.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.tensor([width, height])
    random = torch.rand(number, 4, generator=generator)
    sides = 16 * (image / 16).clamp(min=1) ** random[:, :2]
    corners = random[:, 2:] * (image - sides)
    return torch.cat([corners, corners + sides], 1)


@dataclass
class Work:
    """A model that is ready to be run again and again.

    Attributes:
        run: Runs it once, as it is timed.
        outputs: What comes out, on the CPU in fp32.
        forward: The way up to the loss; None where none goes back from it.
    """

    run: Callable[[], Any]
    outputs: Callable[[], list[Tensor]]
    forward: Callable[[], Tensor] | None = None


def prepare(model: nn.Module, case: Case, image: Tensor) -> Work:
    """Make a model ready for a case.

    Args:
        model: On the device of the image. Its mode becomes that of the case.
        case: What is to be run.
        image: ``(N, 3, H, W)``, fp32.

    Raises:
        ConfigError: If that is not possible here.
    """
    model.train(case.training)  # by itself: it may not return the model
    network: nn.Module = Network(model, image.shape[-2:], len(image))
    if case.mode == 'onnxruntime':
        return _exported(network, case, image)
    whole = isinstance(model, BaseModel)
    if case.training and whole:
        network = Loss(model, case, image.device)
    call = torch.compile(network) if case.compiled else network

    def infer() -> Any:
        with autocast(case, image.device):
            return call(image)

    def loss() -> Tensor:
        outs = infer()
        return outs if whole else sum(x.square().mean() for x in outs)

    def train() -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    def outputs() -> list[Tensor]:
        # A copy: CUDA graphs use their memory again.
        return [x.detach().float().cpu().clone() for x in infer()]

    if case.training:
        return Work(train, outputs, loss)
    no_grad = torch.no_grad()
    return Work(no_grad(infer), no_grad(outputs))


def autocast(
    case: Case, device: torch.device
) -> contextlib.AbstractContextManager:
    """Mixed precision as the case wants it; none for fp32."""
    if case.dtype == 'fp32':
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[case.dtype])


def _exported(network: nn.Module, case: Case, image: Tensor) -> Work:
    """An exported network in ONNX Runtime, on the device of the image."""
    if case.dtype != 'fp32':
        raise ConfigError(
            f'onnxruntime runs the exported model in fp32, not {case.dtype}'
        )
    try:
        import onnx  # noqa: F401 PyTorch's exporter imports it, too late
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f'the mode onnxruntime needs {error.name}, which is not '
            "installed: pip install 'mmefficientmod[export]'"
        ) from None
    kind = image.device.type
    provider = dict(cpu='CPUExecutionProvider', cuda='CUDAExecutionProvider')[
        kind
    ]
    if provider not in onnxruntime.get_available_providers():
        raise ConfigError(
            f'this onnxruntime has no {provider}: pip install onnxruntime-gpu'
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors alone
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, 'model.onnx'))
        _export(network, image, path)
        session = onnxruntime.InferenceSession(
            path, options, providers=[provider]
        )
    # Bound once, so that no copy between the devices is timed.
    binding = session.io_binding()
    binding.bind_ortvalue_input(
        session.get_inputs()[0].name,
        onnxruntime.OrtValue.ortvalue_from_numpy(
            image.cpu().numpy(), kind, image.device.index or 0
        ),
    )
    for out in session.get_outputs():
        binding.bind_output(out.name, kind, image.device.index or 0)

    def run() -> None:
        session.run_with_iobinding(binding)

    def outputs() -> list[Tensor]:
        run()
        return [torch.tensor(x) for x in binding.copy_outputs_to_cpu()]

    return Work(run, outputs)


def _export(network: nn.Module, image: Tensor, path: str) -> None:
    """Write a network as ONNX.

    By the exporter that traces: it is the one that both stacks have, takes
    seconds where the one behind ``dynamo=True`` takes tens of them, and the
    models run equally fast. Opset 17 is the last that PyTorch 2.1 knows.
    """
    arguments: dict[str, Any] = dict(opset_version=17)
    # Older PyTorch has that exporter alone, and no such argument.
    if 'dynamo' in inspect.signature(torch.onnx.export).parameters:
        arguments['dynamo'] = False
    # The mode that it puts back at its end; what is folded has no other.
    network.eval()
    with _silence(), torch.no_grad():
        torch.onnx.export(network, (image,), path, **arguments)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter('ignore')
        yield
