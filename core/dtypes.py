"""In which type does a device hold a model's weights?

Arithmetic on a `cpu` device is float32: shared weights, activations and KV are held so. Routed
experts are most of a model, and widening bfloat16 is exact, so they can stay in half the bytes
without changing a bit of what they compute (LayerCast, arXiv 2506.09501). Controller and workers
must agree on this, so it stands on the ground. Standard library only.
"""

from collections.abc import Mapping
from typing import Any

FLOAT32, BFLOAT16 = "float32", "bfloat16"
DTYPE_BYTES = {FLOAT32: 4, BFLOAT16: 2}


def checkpoint_dtype(config: Mapping[str, Any]) -> str:
    """What a `config.json` says its weights are in; float32 when it does not say."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, Mapping) else {}):
        for field in ("dtype", "torch_dtype"):
            if isinstance(place.get(field), str):
                return str(place[field]).removeprefix("torch.")
    return FLOAT32


def expert_dtype(asked: str, precision: str, checkpoint: str) -> str:
    """The type of routed experts on a `cpu` device.

    What the spec's `engine.dtype` asks for; with `auto`, float32, but a reproducible model keeps a
    bfloat16 checkpoint as it is.
    """
    if asked in DTYPE_BYTES:
        return asked
    keeps = precision == "reproducible" and checkpoint == BFLOAT16
    return BFLOAT16 if keeps else FLOAT32


def bytes_held(asked: str, precision: str, checkpoint: str, *, is_cpu: bool) -> tuple[int, int]:
    """Bytes of an element of a routed expert, and of any other weight.

    A cpu computes in float32 and may keep experts in bfloat16; others hold all in one type.
    """
    if is_cpu:
        return DTYPE_BYTES[expert_dtype(asked, precision, checkpoint)], DTYPE_BYTES[FLOAT32]
    whole = DTYPE_BYTES[BFLOAT16 if asked == "auto" else asked]
    return whole, whole
