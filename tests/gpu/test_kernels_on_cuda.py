"""The kernels compute the same on a CUDA device as on the CPU, within float32 rounding.

Needs torch and pytest only. The CPU twins of these tests, which compare bits, are in
tests/unit/kernels and always run; here the device's own arithmetic is what is in question.
"""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from moectl.kernels import attention, experts  # noqa: E402  (torch is known to be there now)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

# Sums of at most 256 products of unit normals: float32 rounding stays three digits below this.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(autouse=True)
def exact_products() -> None:
    """No TF32: its ten-bit products would hide a wrong kernel behind a wide tolerance."""
    torch.set_float32_matmul_precision("highest")


def normal(*shape: int, seed: int = 0) -> "torch.Tensor":
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ragged_batch() -> attention.PagedRows:
    """A prefill chunk in its middle, two decodes and a pad row, over scattered blocks of 16."""
    lane = np.array([0] * 9 + [1] + [2] + [-1])
    position = np.array([*range(70, 79), 130, 0, 0])
    table = np.array(
        [[7, 2, 9, 4, 1, 0, 0, 0, 0], [3, 5, 6, 8, 10, 11, 12, 13, 14], [15] + [0] * 8]
    )
    return attention.PagedRows(lane, position, table)


@pytest.mark.parametrize(("window", "has_sinks"), [(None, False), (40, False), (40, True)])
def test_paged_attention_is_the_same_on_cuda(window: int | None, has_sinks: bool) -> None:
    rows = ragged_batch()
    q, k, v = normal(12, 6, 32, seed=1), normal(12, 2, 32, seed=2), normal(12, 2, 32, seed=3)
    cache = normal(16, 2, 16, 2, 32, seed=4)
    sinks = normal(6, seed=5) if has_sinks else None
    results = []
    for device in ("cpu", "cuda"):
        moved = cache.clone().to(device)
        form = attention.AttentionForm(
            32**-0.5, window, None if sinks is None else sinks.to(device)
        )
        out = attention.paged_attention(q.to(device), k.to(device), v.to(device), moved, rows, form)
        results.append((out.cpu(), moved.cpu()))
    torch.testing.assert_close(results[1][0], results[0][0], **TOLERANCE)
    assert torch.equal(results[1][1], results[0][1])  # what was written into the pages


def test_experts_and_their_sum_are_the_same_on_cuda() -> None:
    x, gate_up, down = normal(7, 64, seed=1), normal(5, 96, 64, seed=2), normal(5, 64, 48, seed=3)
    rows, slots = np.repeat(np.arange(7), 2), np.array([0, 4, 1, 0, 4, 1, 2, 0, 0, 1, 4, 2, 1, 0])
    ids, weights = torch.from_numpy(slots).view(7, 2), torch.rand(7, 2)
    results = []
    for device in ("cpu", "cuda"):
        held = experts.ExpertWeights(gate_up.to(device) / 8, down.to(device) / 8)
        y = experts.expert_pairs(x.to(device), rows, slots, held)
        total = experts.weighted_sum_in_id_order(
            y.view(7, 2, 64), ids.to(device), weights.to(device)
        )
        results.append(total.cpu())
    torch.testing.assert_close(results[1], results[0], **TOLERANCE)
