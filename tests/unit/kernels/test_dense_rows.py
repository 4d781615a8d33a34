"""Linear layers and norms: the right numbers, and the same bits for a row in any company."""

import pytest
import torch
from torch import nn

from moectl.agents.engine import rowwise
from moectl.kernels import dense, native

needs_native = pytest.mark.skipif(native.extension is None, reason="not built")
LINEARS = [
    pytest.param(dense.linear, id="native", marks=needs_native),
    pytest.param(dense.linear_reference, id="reference"),
]
NORMS = [
    pytest.param(dense.rms_norm, id="native", marks=needs_native),
    pytest.param(dense.rms_norm_reference, id="reference"),
]
SHAPES = [(8, 1), (16, 3), (192, 64), (64, 17), (256, 40), (72, 2048)]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("linear", LINEARS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("depth", "outputs"), SHAPES)
def test_linear_is_right_and_rows_keep_their_bits(linear, depth, outputs, with_bias):
    torch.manual_seed(0)
    x, weight = torch.randn(37, depth), torch.randn(outputs, depth)
    bias = torch.randn(outputs) if with_bias else None
    whole = linear(x, weight, bias)
    exact = nn.functional.linear(x.double(), weight.double(), bias.double() if with_bias else None)
    torch.testing.assert_close(whole.double(), exact, atol=1e-4, rtol=1e-4)
    for start, stop in ((0, 1), (3, 5), (4, 7), (9, 13), (20, 37)):
        assert torch.equal(linear(x[start:stop], weight, bias), whole[start:stop])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(5, 8), (2, 7, 3, 32), (4, 192)])
def test_norm_is_right_and_rows_keep_their_bits(norm, shape):
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(shape[-1])
    whole = norm(x, weight, 1e-6)
    wide = x.double()
    exact = weight.double() * wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(whole.double(), exact, atol=1e-5, rtol=1e-5)
    assert torch.equal(norm(x[1:2], weight, 1e-6), whole[1:2])


def test_leading_dims_and_strides_are_kept():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 5, 16), torch.randn(24, 16)
    turned = x.transpose(0, 2)
    torch.testing.assert_close(dense.linear(turned, weight), nn.functional.linear(turned, weight))
    torch.testing.assert_close(
        dense.rms_norm(turned, weight[0], 1e-6), dense.rms_norm_reference(turned, weight[0], 1e-6)
    )


class PlainRMSNorm(nn.Module):
    def __init__(self, size, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps

    def forward(self, x):
        return (
            self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )


class ShiftedRMSNorm(PlainRMSNorm):
    def forward(self, x):
        return super().forward(x) + x * 0.1


def test_only_what_computes_the_plain_formula_is_adopted():
    model = nn.Sequential(nn.Linear(16, 32), PlainRMSNorm(32), ShiftedRMSNorm(32), nn.LayerNorm(32))
    weight = model[0].weight
    rowwise.adopt(model)
    kinds = [type(module) for module in model]
    assert kinds == [rowwise.RowLinear, rowwise.RowNorm, ShiftedRMSNorm, nn.LayerNorm]
    assert model[0].weight is weight


@needs_native
def test_an_extension_of_another_version_is_not_used():
    assert native.extension.INTERFACE == native.INTERFACE


@pytest.mark.parametrize("width", [1, 3, 16])
def test_a_gate_narrower_than_a_vector_keeps_its_rows_bits_through_sigmoid(width):
    torch.set_num_threads(1)
    gate = nn.Sequential(nn.Linear(64, width))
    rowwise.adopt(gate)
    x = torch.randn(41, 64)
    with torch.inference_mode():
        together = torch.nn.functional.sigmoid(gate(x))
        alone = [torch.nn.functional.sigmoid(gate(row[None])) for row in x]
        assert type(together) is torch.Tensor and together.shape == (41, width)
        assert torch.equal(together, torch.cat(alone))
        exact = torch.sigmoid(torch.nn.functional.linear(x, gate[0].weight, gate[0].bias))
        torch.testing.assert_close(together, exact)


@pytest.mark.parametrize("width", [8, 40, 64])
def test_silu_keeps_a_rows_bits_at_any_width(width):
    torch.set_num_threads(1)
    act = nn.Sequential(nn.SiLU())
    rowwise.adopt(act)
    x = torch.randn(23, width) * 3
    assert torch.equal(act(x), torch.cat([act(row[None]) for row in x]))
    torch.testing.assert_close(act(x), torch.nn.functional.silu(x))


class Router(nn.Module):
    """A module that is no linear layer and multiplies rows with a matrix, as routers do."""

    def __init__(self, widens=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(25, 1024), requires_grad=False)
        self.widens = widens

    def forward(self, x):
        weight = self.weight.type(torch.float32) if self.widens else self.weight
        return torch.nn.functional.linear(x, weight)


@pytest.mark.parametrize(
    "widens, dtype", [(False, torch.float32), (True, torch.float32), (True, torch.bfloat16)]
)
def test_a_router_keeps_its_rows_bits_whoever_owns_the_matrix(widens, dtype):
    torch.set_num_threads(1)
    model = nn.Sequential(Router(widens).to(dtype))
    rowwise.adopt(model)
    assert rowwise.asked_weights(model) == frozenset()
    x = torch.randn(41, 1024)
    with torch.inference_mode():
        together = model(x)
        assert torch.equal(together, torch.cat([model(row[None]) for row in x]))
        exact = x.double() @ model[0].weight.double().T
        torch.testing.assert_close(together.double(), exact, atol=1e-3, rtol=1e-4)
    assert rowwise.asked_weights(model) == {"0.weight"}
