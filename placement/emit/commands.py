"""Which command line starts a replica of a plan, on which engine?

Argument lists, never shell strings; each element is one argument. A prefill or decode replica gets
the engine's own words for its role. Raises RefusedError naming the engine's rule where a layout is
not for it.
"""

from dataclasses import dataclass

from ...core.errors import RefusedError
from ..layouts import Layout
from ..model_facts import ModelShape
from ..quantities import Precision
from .checks import check_words
from .rules import why_not

KV_TYPES = {1.0: "fp8", 2.0: "auto", 4.0: "auto"}


@dataclass(frozen=True, slots=True)
class Replica:
    """What one replica runs: a model, a layout, limits and a role."""

    model: str
    shape: ModelShape
    layout: Layout
    precision: Precision
    batch: int
    context: int
    chunk: int
    role: str = "serve"


def command(engine: str, replica: Replica) -> list[str]:
    """The arguments that start a replica on an engine."""
    reason = why_not(engine, replica.shape, replica.layout)
    if reason:
        raise RefusedError(
            f"{engine} cannot run {replica.layout}: {reason}",
            next_step="plan with --engine to choose among layouts of one engine",
        )
    words = {"vllm": _vllm, "sglang": _sglang, "moectl": _own}[engine](replica)
    check_words(engine, words, replica.shape, replica.precision)
    return words


def _vllm(replica: Replica) -> list[str]:
    layout = replica.layout
    words = ["vllm", "serve", replica.model]
    words += ["--tensor-parallel-size", str(layout.tp)]
    if layout.pp > 1:
        words += ["--pipeline-parallel-size", str(layout.pp)]
    if layout.dp > 1:
        words += ["--data-parallel-size", str(layout.dp)]
    if layout.ep > 1:
        words += ["--enable-expert-parallel"]
    words += ["--max-model-len", str(replica.context)]
    words += ["--max-num-seqs", str(replica.batch * layout.pp)]
    words += ["--max-num-batched-tokens", str(max(replica.chunk, replica.batch))]
    words += ["--kv-cache-dtype", KV_TYPES.get(replica.precision.kv_bytes, "auto")]
    if replica.role != "serve":
        kind = "kv_producer" if replica.role == "prefill" else "kv_consumer"
        words += [
            "--kv-transfer-config",
            f'{{"kv_connector":"NixlConnector","kv_role":"{kind}"}}',
        ]
    return words


def _sglang(replica: Replica) -> list[str]:
    layout = replica.layout
    words = ["python3", "-m", "sglang.launch_server", "--model-path", replica.model]
    words += ["--tp-size", str(layout.tp * layout.dp)]
    if layout.pp > 1:
        words += ["--pp-size", str(layout.pp)]
    if layout.dp > 1:
        words += ["--dp-size", str(layout.dp), "--enable-dp-attention"]
    if layout.ep > 1:
        words += ["--ep-size", str(layout.ep)]
    words += ["--context-length", str(replica.context)]
    words += ["--max-running-requests", str(replica.batch * layout.dp * layout.pp)]
    words += ["--chunked-prefill-size", str(replica.chunk)]
    if replica.precision.kv_bytes == 1:
        words += ["--kv-cache-dtype", "fp8_e4m3"]
    if replica.role != "serve":
        words += ["--disaggregation-mode", replica.role]
    return words


def _own(replica: Replica) -> list[str]:
    return ["moectl", "scale", replica.model, "--experts", str(replica.layout.devices)]
