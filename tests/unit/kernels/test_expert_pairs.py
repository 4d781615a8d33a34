"""Experts over slots against the plain formula, for both implementations."""

import numpy as np
import pytest
import torch

from moectl.kernels import backend_name, experts, native
from moectl.kernels.experts import ClampedGate, ExpertWeights

needs_native = pytest.mark.skipif(native.extension is None, reason="not built")
PAIRS = [
    pytest.param(experts.expert_pairs, id="native", marks=needs_native),
    pytest.param(experts.expert_pairs_reference, id="reference"),
]
SUMS = [
    pytest.param(experts.weighted_sum_in_id_order, id="native", marks=needs_native),
    pytest.param(experts.weighted_sum_reference, id="reference"),
]


def padded_slots(slots, hidden, inner, pad):
    """Weights in slots with unused elements between them, which hold NaN."""
    torch.manual_seed(1)
    size = 3 * hidden * inner
    flat = torch.full((slots, size + pad), float("nan"))
    flat[:, :size] = torch.randn(slots, size) * 0.2
    gate_up = flat.as_strided((slots, 2 * inner, hidden), (size + pad, hidden, 1))
    down = flat.as_strided((slots, hidden, inner), (size + pad, inner, 1), 2 * hidden * inner)
    return ExpertWeights(gate_up, down)


def plain(x, row, slot, weights):
    out = []
    for n, s in zip(row.tolist(), slot.tolist(), strict=True):
        gate, up = (weights.gate_up_SJH[s].double() @ x[n].double()).chunk(2)
        out.append(weights.down_SHI[s].double() @ (torch.nn.functional.silu(gate) * up))
    return torch.stack(out)


@pytest.mark.parametrize("compute", PAIRS)
@pytest.mark.parametrize(("hidden", "inner"), [(8, 8), (64, 32), (192, 64), (72, 40)])
def test_every_pair_gets_its_experts_result(compute, hidden, inner):
    weights = padded_slots(5, hidden, inner, pad=24)
    x = torch.randn(11, hidden)
    random = np.random.RandomState(0)
    row, slot = random.randint(0, 11, 37), random.randint(0, 5, 37)
    got = compute(x, row, slot, weights)
    torch.testing.assert_close(got.double(), plain(x, row, slot, weights), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("compute", PAIRS)
def test_no_pairs_is_an_empty_result(compute):
    empty = np.zeros(0, dtype=np.int64)
    got = compute(torch.randn(3, 16), empty, empty, padded_slots(2, 16, 8, 0))
    assert got.shape == (0, 16)


@pytest.mark.parametrize("compute", PAIRS)
def test_large_gates_do_not_overflow(compute):
    weights = padded_slots(1, 16, 8, 0)
    x = torch.randn(4, 16) * 1e4
    got = compute(x, np.arange(4), np.zeros(4, dtype=np.int64), weights)
    assert torch.isfinite(got).all()
    torch.testing.assert_close(
        got.double(), plain(x, np.arange(4), np.zeros(4, int), weights), rtol=1e-4, atol=10.0
    )


def test_another_activation_runs_on_the_reference():
    weights = padded_slots(2, 16, 8, 0)
    gelu = ExpertWeights(weights.gate_up_SJH, weights.down_SHI, torch.nn.functional.gelu, "gelu")
    x, index = torch.randn(3, 16), np.array([0, 1, 2])
    slot = np.array([0, 1, 0])
    expected = experts.expert_pairs_reference(x, index, slot, gelu)
    assert torch.equal(experts.expert_pairs(x, index, slot, gelu), expected)
    assert not torch.equal(expected, experts.expert_pairs(x, index, slot, weights))


@pytest.mark.parametrize("add", SUMS)
def test_the_sum_goes_in_expert_id_order_whatever_the_routers_order(add):
    torch.manual_seed(0)
    y, weights = torch.randn(6, 4, 32), torch.rand(6, 4)
    ids = torch.stack([torch.randperm(9)[:4] for _ in range(6)])
    first = add(y, ids, weights)
    expected = (y.double() * weights.double().unsqueeze(-1)).sum(1)
    torch.testing.assert_close(first.double(), expected, atol=1e-5, rtol=1e-5)
    for _ in range(5):
        turn = torch.randperm(4)
        assert torch.equal(add(y[:, turn], ids[:, turn], weights[:, turn]), first)


def test_the_backend_has_a_name():
    assert backend_name() == ("reference" if native.extension is None else "native")


@pytest.mark.parametrize("compute", PAIRS)
def test_biases_and_a_clamped_gate_follow_their_formula(compute):
    hidden, inner, slots = 72, 40, 3
    bare = padded_slots(slots, hidden, inner, pad=2 * inner + hidden)
    flat = bare.gate_up_SJH
    stride, first = flat.stride(0), 3 * hidden * inner
    gate_up_bias = flat.as_strided((slots, 2 * inner), (stride, 1), first)
    down_bias = flat.as_strided((slots, hidden), (stride, 1), first + 2 * inner)
    gate_up_bias.copy_(torch.randn(slots, 2 * inner))
    down_bias.copy_(torch.randn(slots, hidden))
    weights = ExpertWeights(
        bare.gate_up_SJH,
        bare.down_SHI,
        gate_up_bias_SJ=gate_up_bias,
        down_bias_SH=down_bias,
        clamped=ClampedGate(1.7, 1.5),
    )
    x, random = torch.randn(9, hidden) * 3, np.random.RandomState(0)
    row, slot = random.randint(0, 9, 25), random.randint(0, slots, 25)
    wanted = []
    for n, s in zip(row, slot, strict=True):
        inner_J = weights.gate_up_SJH[s].double() @ x[n].double() + gate_up_bias[s].double()
        gate, up = inner_J[:inner].clamp(max=1.5), inner_J[inner:].clamp(-1.5, 1.5)
        inner_I = (up + 1) * gate * torch.sigmoid(1.7 * gate)
        wanted.append(weights.down_SHI[s].double() @ inner_I + down_bias[s].double())
    got = compute(x, row, slot, weights)
    torch.testing.assert_close(got.double(), torch.stack(wanted), atol=2e-5, rtol=1e-4)
    alone = compute(x[row[7] : row[7] + 1], np.zeros(1, np.int64), slot[7:8], weights)
    assert torch.equal(alone[0], got[7])


@pytest.mark.parametrize("compute", PAIRS)
@pytest.mark.parametrize("clamped", [None, ClampedGate(1.7, 7.0)], ids=["silu", "clamped"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 11])
def test_bfloat16_weights_give_the_bits_of_the_same_values_in_float32(compute, clamped, rows):
    torch.manual_seed(2)
    hidden, inner, slots = 72, 40, 3
    parts = [
        (slots, 2 * inner, hidden),
        (slots, hidden, inner),
        (slots, 2 * inner),
        (slots, hidden),
    ]
    half = [(torch.randn(shape) * 0.2).bfloat16() for shape in parts]

    def weights(tensors):
        silu = torch.nn.functional.silu
        return ExpertWeights(tensors[0], tensors[1], silu, "silu", *tensors[2:], clamped)

    x, random = torch.randn(rows, hidden), np.random.RandomState(rows)
    row, slot = random.randint(0, rows, 17), random.randint(0, slots, 17)
    got = compute(x, row, slot, weights(half))
    assert got.dtype is torch.float32
    assert torch.equal(got, compute(x, row, slot, weights([each.float() for each in half])))
