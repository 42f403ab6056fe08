"""Invertible 1×1 convolutions (Kingma & Dhariwal 2018, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentrobust.errors import InputError
from latentrobust.networks.flows.base import Flow
from latentrobust.networks.flows.frozen import WhileFrozen
from latentrobust.precision import without_autocast


class SingularError(InputError):
    """The weight of a 1×1 convolution cannot be inverted. The message names the layer and says what to do."""


WORST = 1e7  # condition in the maximum norm, from which float32 weights say little about their inverse


class InvertibleConvolution(Flow):
    """``z = W x`` at every position of ``x [B, C, H, W]``; starts as a random rotation.

    Args:
        channels: C.
        lu: hold ``W`` as a fixed permutation times triangular factors (eq. 10): its determinant is then a product, and
            it can only become singular one diagonal entry at a time. Else ``W`` itself is the parameter.

    Attributes:
        name: of the layer, for messages.
    """

    permutation: Tensor
    signs: Tensor

    def __init__(self, channels: int, lu: bool = False) -> None:
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels))[0]
        self.lu, self.name = lu, "a 1×1 convolution"
        if lu:
            permutation, lower, upper = torch.linalg.lu(rotation)
            diagonal = upper.diagonal()
            self.register_buffer("permutation", permutation)
            self.register_buffer("signs", diagonal.sign())
            self.lower = nn.Parameter(lower.tril(-1))
            self.upper = nn.Parameter(upper.triu(1))
            self.log_diagonal = nn.Parameter(diagonal.abs().log())
        else:
            self.weight = nn.Parameter(rotation)
        self._matrix: WhileFrozen[tuple[Tensor, Tensor]] = WhileFrozen()
        self._inverse: WhileFrozen[Tensor] = WhileFrozen()

    def matrix(self) -> tuple[Tensor, Tensor]:
        """``W [C, C]`` and ``log |det W|``."""
        return self._matrix(list(self.parameters()), self._build)

    def inverse_matrix(self) -> Tensor:
        """``W⁻¹ [C, C]``, float64.

        Raises:
            SingularError: if there is none.
        """
        return self._inverse(list(self.parameters()), self._invert)

    def _build(self) -> tuple[Tensor, Tensor]:
        if not self.lu:
            wide = torch.promote_types(self.weight.dtype, torch.float32)  # half-precision matrices have no determinant
            return self.weight, torch.linalg.slogdet(self.weight.to(wide))[1]
        identity = torch.eye(len(self.lower), device=self.lower.device, dtype=self.lower.dtype)
        upper = self.upper.triu(1) + torch.diag(self.signs * self.log_diagonal.exp())
        with without_autocast(upper):
            return self.permutation @ (self.lower.tril(-1) + identity) @ upper, self.log_diagonal.sum()

    def _invert(self) -> Tensor:
        matrix = self._build()[0]
        wide = matrix.double()
        inverse, failed = torch.linalg.inv_ex(wide)
        condition = wide.abs().sum(1).max() * inverse.abs().sum(1).max()
        if bool(failed) or not bool(condition < WORST):  # also where it is not a number
            raise SingularError(
                f"{self.name} of the flow has become singular: go back to an earlier checkpoint and lower the"
                " learning rate, set trainer.gradient_clip_val, or use learner.network.lu=true"
            )
        return inverse

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: D102
        matrix, log_det = self.matrix()
        with without_autocast(x):
            z = F.conv2d(x, matrix[..., None, None].to(x.dtype))
        return z, (log_det * (x.shape[-2] * x.shape[-1])).expand(x.shape[0])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """``W⁻¹ z``; the inverse is kept while the weight is frozen."""
        with without_autocast(z):
            return F.conv2d(z, self.inverse_matrix()[..., None, None].to(z.dtype))
