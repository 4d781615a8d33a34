"""In how many bytes does a precision keep each kind of weight, and in which type does it compute?

The names are those that people write for whole checkpoints (fp8, nvfp4, ...); a quantised
Mixture-of-Experts checkpoint keeps its attention in a wider type, and only a table can know that.
"""

from dataclasses import dataclass

FP4_BYTES = 0.5 + 1 / 16  # sixteen values share one scale of a byte
MXFP4_BYTES = 0.5 + 1 / 32
FP8_BLOCK_BYTES = 1 + 4 / (128 * 128)


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes of an element by kind, and the operand types of the two kinds of matrix products."""

    name: str
    linear_bytes: float
    expert_bytes: float
    kv_bytes: float
    linear_type: str
    expert_type: str
    other_bytes: float = 2.0  # embeddings, head, routers and norms stay in bf16


PRECISIONS = {
    "float32": Precision("float32", 4, 4, 4, "bf16", "bf16", 4),
    # What a cpu device holds when it keeps experts narrow: it computes in float32 all the same.
    "bf16-experts": Precision("bf16-experts", 4, 2, 4, "bf16", "bf16", 4),
    "bf16": Precision("bf16", 2, 2, 2, "bf16", "bf16"),
    "fp8": Precision("fp8", 1, 1, 2, "fp8", "fp8"),
    "fp8_block": Precision("fp8_block", FP8_BLOCK_BYTES, FP8_BLOCK_BYTES, 2, "fp8", "fp8"),
    "nvfp4": Precision("nvfp4", FP4_BYTES, FP4_BYTES, 2, "fp4", "fp4"),
    "nvfp4-experts": Precision("nvfp4-experts", 2, FP4_BYTES, 2, "bf16", "fp4"),
    "mxfp4-experts": Precision("mxfp4-experts", 2, MXFP4_BYTES, 2, "bf16", "fp4"),
}


def held_precision(expert_bytes: int, other_bytes: int) -> Precision:
    """How our own workers hold a model: bytes of an element of an expert, and of all else."""
    if expert_bytes != other_bytes:
        return PRECISIONS["bf16-experts"]
    return PRECISIONS["float32" if other_bytes == 4 else "bf16"]


def with_kv(precision: Precision, kv_bytes: float) -> Precision:
    """The same precision with another type of cache."""
    return Precision(
        f"{precision.name}+kv{kv_bytes:g}",
        precision.linear_bytes,
        precision.expert_bytes,
        kv_bytes,
        precision.linear_type,
        precision.expert_type,
        precision.other_bytes,
    )
