"""The variants of EfficientMod, one line each.

The expansion ratios are cycled: block j of a stage expands by
``expand_ratios[j % len(expand_ratios)]``. In each stage, ``depths`` blocks of
the kind ``block`` come first, then ``attn_depths`` attention blocks.
"""

from __future__ import annotations

from typing import Any

# Those of the authors' code, as in the paper's table of configurations.
ARCHS: dict[str, dict[str, Any]] = {
    'xxs': dict(
        dims=(32, 64, 128, 256), depths=(2, 2, 6, 2),
        attn_depths=(0, 0, 1, 2), attn_mlp_ratios=(4, 4, 4, 4),
        block='modulation', expand_ratios=(1, 6), drop_path_rate=0.0),
    'xs': dict(
        dims=(32, 64, 144, 288), depths=(3, 3, 4, 2),
        attn_depths=(0, 0, 3, 3), attn_mlp_ratios=(4, 4, 4, 4),
        block='modulation', expand_ratios=(1, 4), drop_path_rate=0.0),
    's': dict(
        dims=(32, 64, 144, 312), depths=(4, 4, 8, 4),
        attn_depths=(0, 0, 4, 4), attn_mlp_ratios=(4, 4, 4, 5),
        block='modulation', expand_ratios=(1, 6), drop_path_rate=0.02),
    's_conv': dict(
        dims=(40, 80, 160, 344), depths=(4, 4, 12, 8),
        attn_depths=(0, 0, 0, 0), attn_mlp_ratios=(4, 4, 4, 4),
        block='modulation', expand_ratios=(1, 6), drop_path_rate=0.02),
}  # fmt: skip
# For phones, without attention. Of its xxs (Conv) the paper gives 4.4 M and
# 0.7 G, but neither widths nor depths. We inferred them as s_conv follows from
# s: a modulation block takes the place of each attention block, and the first
# stages become wider in relation to the others. With 48 and 96 channels in the
# first two stages, and those of xxs in the others, it has 4.36 M, 0.69 G. (The
# 40 and 80 of s_conv would give 0.59 G.) xxs_phone is the model of appendix J,
# for which the paper gives neither parameters nor FLOPs. We took it to be
# xxs_conv with a batch norm after each convolution in place of the LayerNorms:
# 4.37 M, 0.70 G, and folded 4.35 M, 0.69 G. The second model of appendix J
# (75.2, widths and depths adjusted, which are not published) is not here.
PHONE_ARCHS: dict[str, dict[str, Any]] = {
    'xxs_conv': dict(
        dims=(48, 96, 128, 256), depths=(2, 2, 7, 4),
        attn_depths=(0, 0, 0, 0), attn_mlp_ratios=(4, 4, 4, 4),
        block='modulation', expand_ratios=(1, 6), drop_path_rate=0.0),
    'xxs_phone': dict(
        dims=(48, 96, 128, 256), depths=(2, 2, 7, 4),
        attn_depths=(0, 0, 0, 0), attn_mlp_ratios=(4, 4, 4, 4),
        block='phone', expand_ratios=(1, 6), drop_path_rate=0.0),
}  # fmt: skip
# The paper compares modulation with MBConv, without attention and with equally
# many parameters. It gives those and FLOPs only: 12.9 M, 1.6 G; 6.4 M, 0.7 G.
# We inferred widths and depths from the modulation models: the larger is
# s_conv, and xs with modulation blocks in place of its attention blocks, a
# width of 320 and the ratio 6 has 6.43 M, 0.68 G. We chose the ratios; the
# MBConv models have 12.91 M, 1.59 G and 6.29 M, 0.71 G.
MBCONV_ARCHS: dict[str, dict[str, Any]] = {
    'mbconv_xs': dict(
        dims=(32, 64, 144, 320), depths=(3, 3, 7, 5),
        attn_depths=(0, 0, 0, 0), attn_mlp_ratios=(4, 4, 4, 4),
        block='mbconv', expand_ratios=(1.3, 7.1), drop_path_rate=0.0),
    'mbconv_s': dict(
        dims=(40, 80, 160, 344), depths=(4, 4, 12, 8),
        attn_depths=(0, 0, 0, 0), attn_mlp_ratios=(4, 4, 4, 4),
        block='mbconv', expand_ratios=(1.3, 7.1), drop_path_rate=0.02),
}  # fmt: skip
VARIANTS = ARCHS | PHONE_ARCHS | MBCONV_ARCHS
