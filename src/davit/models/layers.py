"""Layers of dense heads by their first values, which are those of mmdet 2, mmsegmentation and mmcv."""

import math

from torch import nn

PRIOR = 0.01  # probability of each class at each anchor before any training, for most anchors hold nothing


class XavierConv2d(nn.Conv2d):
    """A convolution whose values at first keep the variance from side to side: uniform, no bias."""

    def reset_parameters(self) -> None:
        """Draw first values."""
        nn.init.xavier_uniform_(self.weight)
        _fill_bias(self)


class XavierLinear(nn.Linear):
    """A linear layer whose values at first keep the variance from side to side: uniform, no bias."""

    def reset_parameters(self) -> None:
        """Draw first values."""
        nn.init.xavier_uniform_(self.weight)
        _fill_bias(self)


class RectifiedConv2d(nn.Conv2d):
    """A convolution in a chain of ReLUs: normal values at first that keep the variance of gradients, no bias."""

    def reset_parameters(self) -> None:
        """Draw first values."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        _fill_bias(self)


class RectifiedConvTranspose2d(nn.ConvTranspose2d):
    """A transposed convolution in a chain of ReLUs, its first values like those of `RectifiedConv2d`."""

    def reset_parameters(self) -> None:
        """Draw first values."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        _fill_bias(self)


class SmallConv2d(nn.Conv2d):
    """A convolution whose values at first are normal with deviation 0.01, no bias."""

    def reset_parameters(self) -> None:
        """Draw first values."""
        nn.init.normal_(self.weight, std=0.01)
        _fill_bias(self)


class PriorConv2d(SmallConv2d):
    """A classifier of anchors that at first gives every class the probability `PRIOR`."""

    def reset_parameters(self) -> None:
        """Draw first values."""
        super().reset_parameters()
        _fill_bias(self, -math.log((1 - PRIOR) / PRIOR))


class SmallLinear(nn.Linear):
    """A linear layer whose values at first are normal with a small deviation, no bias."""

    deviation = 0.01

    def reset_parameters(self) -> None:
        """Draw first values."""
        nn.init.normal_(self.weight, std=self.deviation)
        _fill_bias(self)


class OffsetLinear(SmallLinear):
    """A linear layer that at first shifts boxes hardly at all."""

    deviation = 0.001


def _fill_bias(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, value: float = 0.0) -> None:
    if layer.bias is not None:
        nn.init.constant_(layer.bias, value)
