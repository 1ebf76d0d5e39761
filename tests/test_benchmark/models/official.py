"""Has the names of the authors' file, around our own blocks."""

from torch import nn

from mmefficientmod import EfficientMod
from mmefficientmod.models.backbones.efficientmod import PatchEmbed


class Embed(nn.Module):
    def __init__(self, ours):
        super().__init__()
        self.proj, self.norm = ours.proj, ours.norm

    def forward(self, x):
        return PatchEmbed.forward(self, x.permute(0, 3, 1, 2))


class Layer(nn.Module):
    def __init__(self, blocks, downsample):
        super().__init__()
        self.blocks = blocks
        self.downsample = downsample and Embed(downsample)


class Model(nn.Module):
    def __init__(self, arch):
        super().__init__()
        ours = EfficientMod(arch)
        downs = [stage.downsample for stage in ours.stages[1:]] + [None]
        self.patch_embed = Embed(ours.stem)
        self.layers = nn.ModuleList(
            Layer(stage.blocks, down)
            for stage, down in zip(ours.stages, downs, strict=True)
        )
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 2)


def efficientMod_xxs():
    return Model('xxs')


def efficientMod_xs():
    return Model('xs')


def efficientMod_s():
    return Model('s')


def efficientMod_s_Conv():
    return Model('s_conv')
