"""The shapes of well-known models' parameters, in their order.

As torchvision (ResNet-50, ViT-B/16) and Hugging Face transformers (GPT-2) make
them: 25,557,032, 86,567,656 and 124,439,808 elements.
"""

from __future__ import annotations

__all__ = ["MODELS", "Shapes"]

Shapes = list[tuple[int, ...]]


def _normed(*shape: int) -> Shapes:
    """A weight, and a normalisation of what it puts out."""
    return [shape, shape[:1], shape[:1]]


def resnet50() -> Shapes:
    """161 tensors: He et al. (2015), table 1, with batch normalisation."""
    shapes = _normed(64, 3, 7, 7)
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            shapes += _normed(width, channels, 1, 1)
            shapes += _normed(width, width, 3, 3)
            shapes += _normed(4 * width, width, 1, 1)
            if block == 0:  # The shortcut.
                shapes += _normed(4 * width, channels, 1, 1)
            channels = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def vit_b_16() -> Shapes:
    """152 tensors: Dosovitskiy et al. (2020), 12 layers of width 768."""
    width = 768
    layer: Shapes = [
        *[(width,)] * 2,
        *[(3 * width, width), (3 * width,), (width, width), (width,)],
        *[(width,)] * 2,
        *[(4 * width, width), (4 * width,), (width, 4 * width), (width,)],
    ]
    return [
        (1, 1, width),
        *[(width, 3, 16, 16), (width,)],
        (1, 197, width),
        *layer * 12,
        *[(width,)] * 2,
        *[(1000, width), (1000,)],
    ]


def gpt2_small() -> Shapes:
    """148 tensors: Radford et al. (2019), 12 layers of width 768."""
    width = 768
    layer: Shapes = [
        *[(width,)] * 2,
        *[(width, 3 * width), (3 * width,), (width, width), (width,)],
        *[(width,)] * 2,
        *[(width, 4 * width), (4 * width,), (4 * width, width), (width,)],
    ]
    return [(50257, width), (1024, width), *layer * 12, *[(width,)] * 2]


def policy() -> Shapes:
    """2,000 tensors: 500 small heads of two layers, as a policy has them."""
    return [(64, 16), (64,), (8, 64), (8,)] * 500


MODELS: dict[str, Shapes] = {
    "ResNet-50": resnet50(),
    "ViT-B/16": vit_b_16(),
    "GPT-2 small": gpt2_small(),
    "policy of 2,000 tensors": policy(),
}
