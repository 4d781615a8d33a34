"""Which modules of a model may be given row-independent kernels, and how?

Linear layers always; a norm when, asked with random numbers, its class computes the plain RMS norm
(so a family with another formula keeps its own code). The module keeps its parameters and its
place; only its class changes. Found by what a class does, not by its name alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import dense


class RowLinear(nn.Linear):
    """A linear layer whose rows do not depend on their number."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., in]; returns [..., out]."""
        return dense.linear(x, self.weight, self.bias)


class RowNorm(nn.Module):
    """The plain RMS norm; made only by changing the class of a module that computes it."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., K]."""
        return dense.rms_norm(x, self.weight, self.variance_epsilon)


def adopt(template: Any) -> None:
    """Give every module that can take one its row-independent kernel."""
    plain_norms: dict[type, bool] = {}
    for module in template.modules():
        kind = type(module)
        if kind is nn.Linear:
            module.__class__ = RowLinear
        elif kind.__name__.endswith("RMSNorm"):
            if kind not in plain_norms:
                plain_norms[kind] = _is_plain_norm(kind)
            if plain_norms[kind]:
                module.__class__ = RowNorm


def _is_plain_norm(kind: type) -> bool:
    """Ask a fresh instance; anything unexpected means: leave that class alone."""
    try:
        asked: Any = kind(16, eps=0.25)
    except TypeError:
        return False
    if set(asked._parameters) != {"weight"} or getattr(asked, "variance_epsilon", None) != 0.25:
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 16, generator=generator), torch.randn(16, generator=generator)
    with torch.no_grad():
        asked.weight.copy_(weight)
        return torch.allclose(asked(x), dense.rms_norm_reference(x, weight, 0.25), atol=1e-6)
