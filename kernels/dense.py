"""Linear layers and RMS norms whose rows do not depend on how many rows come with them.

The GEMM library takes other algorithms for few rows and for narrow outputs, and the tensor library
computes loop tails with other instructions; both change a row's last bits with its company. The
compiled path has one order for every sum. The reference runs the library on blocks of always
ROW_BLOCK rows, and on at least COLUMN_FLOOR outputs, so that it always takes the same algorithm.

Legend: ... any leading dims, N rows, K depth, O outputs.
"""

import torch
from torch import Tensor

from . import native

#: Below this many rows the GEMM of the CPU library takes another path, whose sums differ.
#: Measured (MKL, AVX2): M = 1 and M = 2..3 differ from M >= 4, all M >= 4 are bit-equal.
ROW_FLOOR = 4
#: Below this many outputs the GEMM library's sums differ with the number of rows (measured: 1).
COLUMN_FLOOR = 16
#: Rows of one product of the reference. Chosen: a whole number of any library's register tiles.
ROW_BLOCK = 16


def linear(x: Tensor, weight_OK: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias. Shapes: x [..., K]; returns [..., O]."""
    parts = (x,) if bias_O is None else (x, bias_O[None, :0])
    if native.fits(*parts) and is_compiled(weight_OK):
        return _linear_native(x.contiguous(), weight_OK, bias_O)
    return linear_reference(x, weight_OK, bias_O)


def is_compiled(weight_OK: Tensor) -> bool:
    """Whether `linear` of float32 rows takes the compiled path for a weight."""
    return native.fits(weight_OK) and weight_OK.is_contiguous()


def _linear_native(x: Tensor, weight_OK: Tensor, bias_O: Tensor | None) -> Tensor:
    outputs, depth = weight_OK.shape
    y = torch.empty((*x.shape[:-1], outputs))
    assert native.extension is not None
    native.extension.linear(
        x.data_ptr(),
        weight_OK.data_ptr(),
        0 if bias_O is None else bias_O.data_ptr(),
        y.data_ptr(),
        x.numel() // depth,
        outputs,
        depth,
    )
    return y


def linear_reference(x: Tensor, weight_OK: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """`linear` with the tensor library; the last rows and few outputs are padded with zeros."""
    outputs = weight_OK.shape[0]
    x_NK = x.reshape(-1, x.shape[-1])
    rows = x_NK.shape[0]
    x_NK = torch.nn.functional.pad(x_NK, (0, 0, 0, -rows % ROW_BLOCK))
    if outputs < COLUMN_FLOOR:
        weight_OK = torch.nn.functional.pad(weight_OK, (0, 0, 0, COLUMN_FLOOR - outputs))
        bias_O = (
            None if bias_O is None else torch.nn.functional.pad(bias_O, (0, COLUMN_FLOOR - outputs))
        )
    y_NO = x_NK.new_empty((x_NK.shape[0], weight_OK.shape[0]))
    size = ROW_BLOCK if x.is_cpu else max(x_NK.shape[0], 1)  # elsewhere nothing was measured
    for start in range(0, rows, size):
        block = slice(start, start + size)
        y_NO[block] = torch.nn.functional.linear(x_NK[block], weight_OK, bias_O)
    return y_NO[:rows, :outputs].reshape(*x.shape[:-1], outputs)


def rms_norm(x: Tensor, weight_K: Tensor, epsilon: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + epsilon) over the last dim. Shapes: x [..., K]."""
    if native.fits(x, weight_K):
        return _rms_norm_native(x.contiguous(), weight_K, epsilon)
    return rms_norm_reference(x, weight_K, epsilon)


def _rms_norm_native(x: Tensor, weight_K: Tensor, epsilon: float) -> Tensor:
    depth = x.shape[-1]
    y = torch.empty(x.shape)
    assert native.extension is not None
    native.extension.norm(
        x.data_ptr(), weight_K.data_ptr(), y.data_ptr(), x.numel() // depth, depth, epsilon
    )
    return y


def rms_norm_reference(x: Tensor, weight_K: Tensor, epsilon: float) -> Tensor:
    """`rms_norm` with the tensor library, in float32 whatever the dtype of x."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return weight_K * scaled.to(x.dtype)


def gemm_rows_keep_their_bits(depth: int, outputs: int) -> bool:
    """Whether ROW_FLOOR is enough for the GEMM library on this machine, for one weight shape.

    The floor is a fact of a library on a CPU, not a promise (an Intel CPU with AMX needs more than
    an AMD one): ask once at the start, for what still runs on the library, before promising that
    rows keep their bits.
    """
    generator = torch.Generator().manual_seed(0)
    x_NK = torch.randn(64, depth, generator=generator)
    weight_OK = torch.randn(outputs, depth, generator=generator)
    whole_NO = torch.nn.functional.linear(x_NK, weight_OK)
    sizes = (ROW_FLOOR, ROW_FLOOR + 1, 7, 8, 13, 16, 31, 32)
    return all(
        torch.equal(torch.nn.functional.linear(x_NK[:rows], weight_OK), whole_NO[:rows])
        and torch.equal(torch.nn.functional.linear(x_NK[-rows:], weight_OK), whole_NO[-rows:])
        for rows in sizes
    )
