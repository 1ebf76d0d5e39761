"""A user's file, with models that work and models that fail."""

import torch
from torch import nn

from mmefficientmod import EfficientMod


class Tiny(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)

    def forward(self, x):
        return self.conv(x).relu()


class Other(Tiny):
    pass


class Broken(Tiny):
    def forward(self, x):
        raise RuntimeError('no [memory] left\n and a second line')


class Breaking(Tiny):
    def forward(self, x):
        x = self.conv(x)
        torch._dynamo.graph_break()
        return x.relu()


class Foldable(Tiny):
    scale = 3.0

    def forward(self, x):
        return self.conv(x) * self.scale

    def switch_to_deploy(self):
        self.conv.weight.data *= self.scale
        self.conv.bias.data *= self.scale
        self.scale = 1.0


class Misfolded(Foldable):
    def switch_to_deploy(self):
        self.scale = 1.0


class Derived(EfficientMod):
    pass


not_a_module = 1
