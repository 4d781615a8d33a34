"""Which shapes do a model's experts and its KV have, once the model has been asked?

Plain data, filled by `probe.py` and read by everybody who lays memory out: slots, blocks, layouts.
The form of an expert is the one in its slot (gate rows first, nothing transposed or interleaved),
whatever the form in the checkpoint is; `is_transposed` and `is_interleaved` say what the checkpoint
has.
"""

from dataclasses import dataclass

from ...kernels.experts import ClampedGate


@dataclass(frozen=True, slots=True)
class ExpertForm:
    """One expert's tensors: gate_up [2I, H], down [H, I], then biases [2I] and [H] if any."""

    experts: int
    hidden: int
    inner: int
    has_bias: bool = False
    is_transposed: bool = False
    is_interleaved: bool = False
    activation: str = "silu"
    clamped: ClampedGate | None = None

    @property
    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape, in the order in which they stand in a slot."""
        shapes: dict[str, tuple[int, ...]] = {
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
        }
        if self.has_bias:
            shapes |= {"gate_up_bias": (2 * self.inner,), "down_bias": (self.hidden,)}
        return shapes


@dataclass(frozen=True, slots=True)
class KvForm:
    """What one token leaves behind in one layer: `parts` vectors of `heads` times `width`.

    Two parts are keys and values; one part is a latent, whose first `latent` numbers are the
    compressed keys and values and the rest a rotated key.
    """

    layers: int
    heads: int
    width: int
    parts: int = 2
    latent: int = 0

    def block_shape(self, block_tokens: int) -> tuple[int, int, int, int, int]:
        """[layers, parts, block_tokens, heads, width]: one KV block."""
        return (self.layers, self.parts, block_tokens, self.heads, self.width)
