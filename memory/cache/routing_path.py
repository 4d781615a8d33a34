"""Can token ids alone name the experts of all layers before the forward begins?

ExpertFlow's routing-path predictor, re-implemented: an encoder reads the prompt, a causal decoder
reads the tokens so far, and one light head for each MoE layer scores its experts; trained with
binary cross-entropy on recorded routes. About 7 MB. Judged by recall like all others, split by
request. It needs traces with token ids, and one training for each model; it is here to be compared
with, and to be used where it wins. Torch is imported only when this file is.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...core.errors import CheckpointError, RefusedError
from .trace import Floats, RoutingTrace

FORMAT = "moectl-routing-path"
Report = Callable[[int, int, float], None]  # step, steps, loss


@dataclass(frozen=True, slots=True)
class PathShape:
    """Sizes of a predictor; the defaults make about 7 MB in float32 with a vocabulary of 2048."""

    layers: int
    experts: int
    vocab: int
    hidden: int = 32
    inner: int = 2048
    depth: int = 6  # of the encoder, and of the decoder
    heads: int = 4
    context: int = 256
    prompt: int = 16  # tokens that the encoder reads


@dataclass(frozen=True, slots=True)
class PathTraining:
    """How a predictor is trained."""

    steps: int = 300
    batch: int = 8  # windows of `context` tokens
    rate: float = 2e-3
    seed: int = 7


class RoutingPathModel(nn.Module):
    """Token ids -> logits of every expert of every MoE layer."""

    def __init__(self, shape: PathShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.hidden)
        self.place = nn.Embedding(shape.context, shape.hidden)
        sizes: dict[str, Any] = {
            "d_model": shape.hidden,
            "nhead": shape.heads,
            "dim_feedforward": shape.inner,
            "dropout": 0.0,
            "batch_first": True,
            "norm_first": True,
        }
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(**sizes) for _ in range(shape.depth)
        )
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(**sizes) for _ in range(shape.depth)
        )
        self.norm = nn.LayerNorm(shape.hidden)
        self.gates = nn.ModuleList(
            nn.Linear(shape.hidden, shape.experts) for _ in range(shape.layers)
        )

    def forward(self, ids_BS: Tensor) -> Tensor:
        """[B, S] token ids -> [B, S, layers, experts] logits; S is at most `context`.

        A position sees the prompt and the tokens up to itself, nothing later.
        """
        places = torch.arange(ids_BS.shape[1])
        x = self.embed(ids_BS) + self.place(places)
        known = x[:, : self.shape.prompt]
        for layer in self.encoder:
            known = layer(known)
        later = torch.triu(torch.ones(len(places), len(places), dtype=torch.bool), diagonal=1)
        for layer in self.decoder:
            x = layer(x, known, tgt_mask=later)
        x = self.norm(x)
        return torch.stack([gate(x) for gate in self.gates], dim=2)

    @property
    def bytes(self) -> int:
        """Size of the parameters."""
        return sum(p.numel() * p.element_size() for p in self.parameters())


def shape_for(trace: RoutingTrace, vocab: int = 0) -> PathShape:
    """The default predictor for a trace's model; RefusedError when it has no token ids."""
    if trace.token_ids is None:
        raise RefusedError(
            f"{trace.source or 'the trace'}: no token ids in it, which this predictor reads",
            next_step="record a trace with token ids; the online predictors need none",
        )
    size = vocab or int(trace.token_ids.max()) + 1
    return PathShape(len(trace.layers), trace.experts_per_layer, size)


def train_path(
    trace: RoutingTrace, shape: PathShape, how: PathTraining, report: Report | None = None
) -> RoutingPathModel:
    """Train on all requests of a trace. Seeded; the caller keeps back what it judges on."""
    torch.manual_seed(how.seed)
    model = RoutingPathModel(shape)
    windows = _windows(trace, shape)
    picks = torch.Generator().manual_seed(how.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=how.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, how.rate, total_steps=how.steps)
    for step in range(how.steps):
        chosen = torch.randint(len(windows), (how.batch,), generator=picks).tolist()
        loss = _loss(model, [windows[i] for i in chosen])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if report is not None:
            report(step + 1, how.steps, float(loss.detach()))
    return model.eval()


def _windows(trace: RoutingTrace, shape: PathShape) -> list[tuple[Tensor, Tensor]]:
    """(ids [S], used [S, layers, experts]) of every request, cut to the context."""
    found = []
    for request in trace.request_ids():
        own = trace.of_request(request)
        assert own.token_ids is not None
        used = np.zeros((own.tokens, shape.layers, shape.experts), np.float32)
        np.put_along_axis(used, own.experts, 1.0, axis=2)
        for start in range(0, own.tokens, shape.context):
            stop = min(start + shape.context, own.tokens)
            ids = torch.from_numpy(own.token_ids[start:stop].astype(np.int64))
            found.append((ids, torch.from_numpy(used[start:stop])))
    return found


def _loss(model: RoutingPathModel, batch: list[tuple[Tensor, Tensor]]) -> Tensor:
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.stack([nn.functional.pad(ids, (0, longest - len(ids))) for ids, _ in batch])
    used = torch.stack(
        [nn.functional.pad(used, (0, 0, 0, 0, 0, longest - len(used))) for _, used in batch]
    )
    real = torch.stack([torch.arange(longest) < len(row) for row, _ in batch])
    logits = model(ids)
    return nn.functional.binary_cross_entropy_with_logits(logits[real], used[real])


def predict_paths(model: RoutingPathModel, trace: RoutingTrace) -> Floats:
    """[tokens, layers, experts] chances for every token of a trace, request by request."""
    chances = np.zeros((trace.tokens, model.shape.layers, model.shape.experts), np.float32)
    assert trace.token_ids is not None
    with torch.inference_mode():
        for request in trace.request_ids():
            at = np.flatnonzero(trace.requests == request)
            for start in range(0, len(at), model.shape.context):
                part = at[start : start + model.shape.context]
                ids = torch.from_numpy(trace.token_ids[part].astype(np.int64))[None]
                chances[part] = torch.sigmoid(model(ids))[0].numpy()
    return chances


def save_path_model(model: RoutingPathModel, path: Path) -> None:
    """Write the weights, with the shape in the file's own head."""
    head = {"format": FORMAT, "shape": json.dumps(asdict(model.shape))}
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, head)


def load_path_model(path: Path) -> RoutingPathModel:
    """Read a predictor; CheckpointError when it is another or a broken file."""
    try:
        with safe_open(path, framework="pt") as file:
            head = file.metadata() or {}
            if head.get("format") != FORMAT:
                raise CheckpointError(f"{path}: not a routing-path predictor")
            model = RoutingPathModel(PathShape(**json.loads(head["shape"])))
            names = list(file.keys())
            model.load_state_dict({name: file.get_tensor(name) for name in names})
    except (OSError, SafetensorError, RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a readable routing-path predictor: {error}") from error
    return model.eval()
