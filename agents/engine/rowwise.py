"""Which modules of a model may be given row-independent kernels, and how?

Linear layers always; a norm when, asked with random numbers, its class computes the plain RMS norm
(so a family with another formula keeps its own code). The module keeps its parameters and its
place; only its class changes. Found by what a class does, not by its name alone. A module of
another class that owns a matrix, as routers do, keeps its code: the matrix itself says how rows are
multiplied with it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from ...kernels import dense


class RowLinear(nn.Linear):
    """A linear layer whose rows do not depend on their number."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., in]; returns [..., out]."""
        return dense.linear(x, self.weight, self.bias)


class NarrowRows(Tensor):
    """Few columns per row, on their way into an activation.

    Elementwise functions run whole vectors of elements and a scalar tail, which do not agree in the
    last bit; in a tensor this narrow, where a row falls depends on the rows before it. So the
    functions in question see every row in a vector of its own. All else is done as ever, and gives
    plain tensors.
    """

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        plain = [arg.as_subclass(Tensor) if isinstance(arg, cls) else arg for arg in args]
        with torch._C.DisableTorchFunctionSubclass():
            if func in _ROW_SENSITIVE:
                return _in_whole_vectors(func, plain[0])
            return func(*plain, **(kwargs or {}))


#: Elements that one pass of the tensor library's vector loop takes: two vectors, of 16 floats on
#: the widest CPU in use (measured: 32 with AVX-512, 16 with AVX2).
VECTOR = 32
_ROW_SENSITIVE = (torch.sigmoid, Tensor.sigmoid)


class RowSilu(nn.Module):
    """silu of rows that may be of any width; made only by changing the class of an nn.SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., I]."""
        silu = torch.nn.functional.silu
        return silu(x) if x.shape[-1] % VECTOR == 0 else _in_whole_vectors(silu, x)


def _in_whole_vectors(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """An elementwise function with every row padded to whole vectors of its own."""
    width = x.shape[-1]
    return function(torch.nn.functional.pad(x, (0, -width % VECTOR)))[..., :width]


class RowGate(nn.Linear):
    """A linear layer with few outputs: its rows, marked as narrow."""

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., in]; returns [..., out]."""
        return _narrow(dense.linear(x, self.weight, self.bias))


class RowNorm(nn.Module):
    """The plain RMS norm; made only by changing the class of a module that computes it."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: x [..., K]."""
        return dense.rms_norm(x, self.weight, self.variance_epsilon)


class RowWeight(nn.Parameter):
    """A matrix whose product with rows, asked for as `linear`, does not depend on their number.

    All else is done as with any parameter. `is_asked` tells whether such a product was ever taken:
    what a module does otherwise with its matrix is not row-independent.
    """

    is_asked = False
    _origin: "RowWeight | None" = None

    @property
    def origin(self) -> "RowWeight":
        """The matrix that this one is a conversion of, or itself."""
        return self if self._origin is None else self._origin

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is nn.functional.linear and len(args) > 1 and isinstance(args[1], cls):
                args[1].origin.is_asked = True
                return _narrow(dense.linear(*args, **(kwargs or {})))
            result = func(*args, **(kwargs or {}))
            if func in _CONVERSIONS and not isinstance(result, cls):
                wide = cls(result, requires_grad=False)
                wide._origin = args[0].origin
                return wide
            return result


#: Routers widen what they multiply: what comes out is the same matrix in other numbers.
_CONVERSIONS = (Tensor.to, Tensor.float, Tensor.type, Tensor.contiguous)


def _narrow(x: Tensor) -> Tensor:
    return x.as_subclass(NarrowRows) if x.shape[-1] < VECTOR else x


def adopt(template: Any) -> None:
    """Give every module that can take one its row-independent kernel."""
    plain_norms: dict[type, bool] = {}
    for module in template.modules():
        kind = type(module)
        if not isinstance(module, nn.Linear | nn.Embedding):
            _mark_matrices(module)
        if kind is nn.Linear:
            module.__class__ = RowGate if module.out_features < VECTOR else RowLinear
        elif kind in (nn.SiLU, SiLUActivation):
            module.__class__ = RowSilu
        elif kind.__name__.endswith("RMSNorm"):
            if kind not in plain_norms:
                plain_norms[kind] = _is_plain_norm(kind)
            if plain_norms[kind]:
                module.__class__ = RowNorm


def asked_weights(template: Any) -> frozenset[str]:
    """Names of the matrices outside linear layers that a pass multiplies row by row."""
    named = template.named_parameters()
    return frozenset(n for n, held in named if isinstance(held, RowWeight) and held.is_asked)


def _mark_matrices(module: nn.Module) -> None:
    for name, held in module._parameters.items():
        if held is not None and held.dim() == 2:
            module._parameters[name] = RowWeight(held.detach(), requires_grad=False)


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
