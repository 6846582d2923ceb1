"""The networks of the ESRGAN family, which enlarge pictures: of residual dense blocks, and the compact one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, cat, nn
from torch.nn.functional import interpolate, leaky_relu, pad, pixel_shuffle, pixel_unshuffle

SLOPE = 0.2
"""Of the rectifiers below zero."""
SHARE = 0.2
"""Of a block's result that is added to its input (arXiv:1809.00219, section 3.1)."""


def _conv(channels: int, features: int) -> nn.Conv2d:
    return nn.Conv2d(channels, features, 3, padding=1)


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the input and all results before it (arXiv:1809.00219, figure 4).

    Args:
        features: channels of input and result.
        growth: channels that each of the first four adds.
    """

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        for number in range(1, 6):
            seen = features + (number - 1) * growth
            self.add_module(f"conv{number}", _conv(seen, growth if number < 5 else features))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of the input (B, features, h, w)."""
        seen = x
        for number in range(1, 5):
            seen = cat([seen, leaky_relu(self.get_submodule(f"conv{number}")(seen), SLOPE)], 1)
        return x + SHARE * self.get_submodule("conv5")(seen)


class ResidualBlock(nn.Module):
    """Three dense blocks with a residual around them (RRDB, arXiv:1809.00219, figure 4)."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(features, growth) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of the input (B, features, h, w)."""
        return x + SHARE * self.rdb3(self.rdb2(self.rdb1(x)))


class RRDBNet(nn.Module):
    """The generator of ESRGAN (arXiv:1809.00219) and Real-ESRGAN (arXiv:2107.10833).

    Args:
        features: channels between the blocks.
        growth: as of `DenseBlock`.
        blocks: their number.
        doublings: times that the picture is doubled behind them.
        folded: side of the squares of pixels that become channels first (arXiv:2107.10833, section 3.4), 1 for none.
    """

    def __init__(self, features: int, growth: int, blocks: int, doublings: int, folded: int) -> None:
        super().__init__()
        self.folded, self.scale = folded, 2**doublings // folded
        self.conv_first = _conv(3 * folded**2, features)
        self.body = nn.Sequential(*(ResidualBlock(features, growth) for _ in range(blocks)))
        self.conv_body = _conv(features, features)
        self.ups = [f"conv_up{number}" for number in range(1, doublings + 1)]
        for name in self.ups:
            self.add_module(name, _conv(features, features))
        self.conv_hr, self.conv_last = _conv(features, features), _conv(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return pictures (B, 3, h * scale, w * scale) for such of (B, 3, h, w), in [0, 1]."""
        height, width = x.shape[-2:]
        if self.folded > 1:
            across, down = -width % self.folded, -height % self.folded
            x = pixel_unshuffle(pad(x, (0, across, 0, down), "reflect"), self.folded)
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        for name in self.ups:
            x = leaky_relu(self.get_submodule(name)(interpolate(x, scale_factor=2, mode="nearest")), SLOPE)
        x = self.conv_last(leaky_relu(self.conv_hr(x), SLOPE))
        return x[..., : height * self.scale, : width * self.scale]


class Compact(nn.Module):
    """The compact network of Real-ESRGAN (SRVGGNetCompact): plain convolutions, and the picture added to the result.

    Args:
        features: channels between the convolutions.
        layers: their number between the first and the last.
        scale: times that a side grows.
    """

    def __init__(self, features: int, layers: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        between = [part for _ in range(layers) for part in (_conv(features, features), nn.PReLU(features))]
        self.body = nn.Sequential(_conv(3, features), nn.PReLU(features), *between, _conv(features, 3 * scale**2))

    def forward(self, x: Tensor) -> Tensor:
        """Return pictures (B, 3, h * scale, w * scale) for such of (B, 3, h, w), in [0, 1]."""
        return pixel_shuffle(self.body(x), self.scale) + interpolate(x, scale_factor=self.scale, mode="nearest")


Network = RRDBNet | Compact


def filled(network: Network, tensors: Mapping[str, Tensor]) -> Network:
    """Return the network with these weights, in float32, ready to be used.

    Raises:
        RuntimeError: if names or shapes are others.
    """
    network.load_state_dict({name: one.float() for name, one in tensors.items()}, strict=True, assign=True)
    return network.eval().requires_grad_(False)
