"""What does one layer of a model weigh, keep and compute? The shape that every plan counts with.

Plain numbers read from a `config.json` (see `placement.families`), never from weights: planning
happens before a checkpoint is on the machine. Nothing here estimates; what a family's code does not
know is refused there by name. Parameters are elements, KV is elements per token, so that dtypes are
chosen later (`placement.quantities`).

Legend: d hidden, h query heads, E experts of a layer, k experts a token uses, m width of an expert.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attention:
    """The attention of one layer.

    `kind` is gqa, mla, linear or compressed. `kv_elements` are cached for one of every `kv_stride`
    tokens, at most for the last `window`; `state_elements` belong to a sequence whatever its
    length. `qk_dim` and `v_dim` are what the scores and the sums cost; `met_tokens` caps how many
    cached tokens a query meets (learned sparse attention).
    """

    kind: str
    parameters: int
    heads: int
    kv_heads: int
    qk_dim: int
    v_dim: int
    kv_elements: int
    window: int | None = None
    kv_stride: int = 1
    state_elements: int = 0
    index_elements: int = 0  # keys of a learned selector, cached beside the KV
    index_cost: int = 0  # multiply-adds of the selector for one query and one key
    met_tokens: int | None = None

    @property
    def is_replicated(self) -> bool:
        """Whether tensor parallelism leaves a whole copy of the cache on every rank."""
        return self.kind in ("mla", "compressed")

    def cached_elements(self, tokens: int) -> int:
        """Elements that one sequence of `tokens` keeps in one layer, state excluded."""
        kept = tokens if self.window is None else min(tokens, self.window)
        return (self.kv_elements + self.index_elements) * -(-kept // self.kv_stride)

    def met(self, tokens: float) -> float:
        """Cached rows that a query at position `tokens` meets."""
        if self.kind == "linear":
            return 0.0
        rows = tokens if self.window is None else min(tokens, float(self.window))
        rows /= self.kv_stride
        return rows if self.met_tokens is None else min(rows, float(self.met_tokens))


@dataclass(frozen=True, slots=True)
class FeedForward:
    """The MLP of one layer: dense (`experts` = 0) or routed experts beside shared ones."""

    dense_parameters: int  # a dense MLP, or the shared experts with their gate
    dense_inner: int
    experts: int = 0
    per_token: int = 0
    expert_parameters: int = 0  # one expert
    expert_inner: int = 0
    router_parameters: int = 0

    @property
    def parameters(self) -> int:
        """Everything the MLP holds."""
        return (
            self.dense_parameters + self.experts * self.expert_parameters + self.router_parameters
        )

    @property
    def active_parameters(self) -> int:
        """What one token uses of it."""
        return (
            self.dense_parameters + self.per_token * self.expert_parameters + self.router_parameters
        )


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """`count` layers of the same make."""

    count: int
    attention: Attention
    feed_forward: FeedForward
    other_parameters: int  # norms, mixing of residual streams

    @property
    def parameters(self) -> int:
        """Of one layer."""
        return self.attention.parameters + self.feed_forward.parameters + self.other_parameters

    @property
    def active_parameters(self) -> int:
        """Of one layer, for one token."""
        inner = self.feed_forward.active_parameters
        return self.attention.parameters + inner + self.other_parameters


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model as its groups of layers, in no particular order of depth."""

    architecture: str
    hidden: int
    vocab: int
    context_tokens: int
    tied_embeddings: bool
    groups: tuple[LayerGroup, ...]
    final_parameters: int  # norms and mixers after the last layer
    mtp_parameters: int = 0  # multi-token-prediction layers; not part of the totals

    @property
    def layers(self) -> int:
        """Layers of all groups."""
        return sum(group.count for group in self.groups)

    @property
    def moe_layers(self) -> int:
        """Layers with routed experts."""
        return sum(group.count for group in self.groups if group.feed_forward.experts)

    @property
    def is_moe(self) -> bool:
        """Whether any layer has routed experts."""
        return self.moe_layers > 0

    @property
    def embedding_parameters(self) -> int:
        """The embedding table, once; a tied head is the same table."""
        return self.vocab * self.hidden

    @property
    def head_parameters(self) -> int:
        """The head that makes logits; 0 when it is the embedding table."""
        return 0 if self.tied_embeddings else self.embedding_parameters

    @property
    def total_parameters(self) -> int:
        """Every weight but those of multi-token prediction."""
        inner = sum(group.count * group.parameters for group in self.groups)
        return inner + self.embedding_parameters + self.head_parameters + self.final_parameters

    @property
    def active_parameters(self) -> int:
        """What a token multiplies with: all but unused experts and the embedding look-up."""
        inner = sum(group.count * group.active_parameters for group in self.groups)
        return inner + self.embedding_parameters + self.final_parameters

    @property
    def expert_parameters(self) -> int:
        """All routed experts of all layers."""
        return sum(
            g.count * g.feed_forward.experts * g.feed_forward.expert_parameters for g in self.groups
        )

    @property
    def heads(self) -> int:
        """Query heads of the widest softmax attention; of any when there is none."""
        return max(group.attention.heads for group in self.groups)

    @property
    def kv_heads(self) -> int:
        """Key/value heads of the layers that cache keys and values."""
        cached = [g.attention.kv_heads for g in self.groups if g.attention.kv_elements]
        return max(cached, default=1)

    @property
    def experts(self) -> int:
        """Routed experts of an MoE layer; 0 for a dense model."""
        return max(group.feed_forward.experts for group in self.groups)

    @property
    def experts_per_token(self) -> int:
        """Routed experts a token uses in an MoE layer."""
        return max(group.feed_forward.per_token for group in self.groups)

    @property
    def kv_elements_per_token(self) -> int:
        """Elements of keys and values that one more token adds while nothing is evicted."""
        return sum(g.count * g.attention.kv_elements // g.attention.kv_stride for g in self.groups)

    def kv_elements(self, tokens: int) -> int:
        """Elements that a sequence of `tokens` keeps over all layers, selectors' keys included."""
        return sum(g.count * g.attention.cached_elements(tokens) for g in self.groups)

    @property
    def state_elements(self) -> int:
        """float32 elements of recurrent state of one sequence."""
        return sum(g.count * g.attention.state_elements for g in self.groups)

    def breakdown(self) -> Iterator[tuple[str, int]]:
        """Parameters by kind; the parts sum to `total_parameters`."""
        each = [(group.count, group) for group in self.groups]
        yield "embeddings", self.embedding_parameters
        yield "head", self.head_parameters
        yield "attention", sum(n * g.attention.parameters for n, g in each)
        yield (
            "dense_mlp",
            sum(n * g.feed_forward.dense_parameters for n, g in each if not g.feed_forward.experts),
        )
        yield (
            "shared_experts",
            sum(n * g.feed_forward.dense_parameters for n, g in each if g.feed_forward.experts),
        )
        yield "routers", sum(n * g.feed_forward.router_parameters for n, g in each)
        yield "routed_experts", self.expert_parameters
        yield "norms", sum(n * g.other_parameters for n, g in each) + self.final_parameters
