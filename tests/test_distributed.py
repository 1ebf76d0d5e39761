"""Two processes on a CPU: the gradients of one with the joined batch."""

import os

import torch
from mmengine.model import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from mmefficientmod import EfficientMod

TINY = dict(
    dims=(8, 16, 24, 32),
    depths=(1, 1, 1, 1),
    attn_depths=(0, 0, 1, 1),
    expand_ratios=(1, 3),
    attn_mlp_ratios=(2, 2, 2, 2),
)


class Segmentor(nn.Module):
    """A backbone and a neck with batch norm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = EfficientMod(TINY, layer_scale_init_value=0.5)
        self.neck = nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x):
        first, *rest = self.backbone(x)
        return [self.neck(first), *rest]


def loss_of(model, x):
    return sum(out.square().mean() for out in model(x))


def images():
    return torch.randn(
        4, 3, 48, 40, generator=torch.Generator().manual_seed(1)
    )


def work(rank, folder):
    os.environ['GLOO_SOCKET_IFNAME'] = 'lo'
    torch.distributed.init_process_group(
        'gloo', f'file://{folder}/rendezvous', rank=rank, world_size=2
    )
    # Batch statistics of halves differ from those of the whole.
    model = Segmentor().train()
    model.neck[1].eval()
    parallel = DistributedDataParallel(model)
    loss_of(parallel, images()[2 * rank :][:2]).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    torch.save(grads, f'{folder}/{rank}.pth')
    torch.distributed.destroy_process_group()


def test_gradients_of_two_processes(tmp_path):
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    model = Segmentor().train()
    model.neck[1].eval()
    loss_of(model, images()).backward()
    expected = {n: p.grad for n, p in model.named_parameters()}
    for rank in range(2):
        got = torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_sync_bn_conversion_takes_the_neck_alone():
    model = convert_sync_batchnorm(Segmentor(), 'torch')
    kinds = {n: type(m) for n, m in model.named_modules()}
    assert kinds['neck.1'] is nn.SyncBatchNorm
    assert nn.SyncBatchNorm not in {
        k for n, k in kinds.items() if n.startswith('backbone')
    }
    assert_close(model.eval()(images()), Segmentor().eval()(images()))
