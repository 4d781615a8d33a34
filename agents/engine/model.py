"""How does one forward pass run over a ragged batch?

`ForwardPass` drives a bound template: rows of all requests as one sequence, no mask, no cache
object, logits for the rows that sample only. It keeps nothing between steps, so a failed pass can
run again. The template's names (`build_template`, `bind_shared`, ...) are re-exported: this is the
file to import from.
"""

import torch
from torch import Tensor

from ...kernels import dense
from . import hooks
from .batch import StepBatch
from .kv import KvPool
from .moe import MoeRunner
from .rowwise import RowGate, RowLinear
from .template import (
    ModelShape,
    Template,
    bind_shared,
    build_template,
    expert_modules,
    expert_tensor_shapes,
    model_shape,
    shared_tensor_specs,
)

__all__ = [
    "ForwardPass",
    "ModelShape",
    "Template",
    "bind_shared",
    "build_template",
    "expert_tensor_shapes",
    "model_shape",
    "shared_tensor_specs",
]


class ForwardPass:
    """One rank's model: a template whose shared tensors are bound."""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.shape = model_shape(template)
        self._seats: list[hooks.Seat] = [module.moectl_seat for module in expert_modules(template)]
        self._dtype = template.dtype

    @torch.inference_mode()
    def run(self, batch: StepBatch, moe: MoeRunner, kv: KvPool) -> Tensor:
        """Write the rows' KV and return logits.

        Shapes: returns [S, V] for batch.sample_S (rows past batch.sampled_count are padding).
        Raises: whatever `moe.run` raises; the step can then be run again.
        """
        step = hooks.Step(batch.paged, kv, moe, batch.row_count)
        for seat in self._seats:
            seat.step = step
        try:
            return self._forward(batch, step)
        finally:
            for seat in self._seats:
                seat.step = None

    def _forward(self, batch: StepBatch, step: hooks.Step) -> Tensor:
        output = self.template(
            input_ids=torch.from_numpy(batch.token_T).unsqueeze(0),
            position_ids=torch.from_numpy(batch.paged.position_T).unsqueeze(0),
            attention_mask=None,
            use_cache=False,
            logits_to_keep=torch.from_numpy(batch.sample_S),
            moectl=step,
            **self._extra(step),
        )
        return output.logits[0]

    def _extra(self, step: hooks.Step) -> dict[str, hooks.Step]:
        """Latent attention shows its latents to the cache that it is given."""
        return {"past_key_values": step} if self.shape.kv.latent else {}

    @torch.inference_mode()
    def unstable_weights(self) -> list[str]:
        """Weights whose rows may change bits with their company on this machine; [] is good.

        Asks the GEMM library about every 2-D weight that does not run on our own kernel, in a few
        milliseconds; for `precision: reproducible`, at the start, with the threads that will serve.
        """
        asked: dict[tuple[int, int], bool] = {}
        unstable = []
        for name, weight in self.template.named_parameters():
            owner = self.template.get_submodule(name.rpartition(".")[0])
            is_matrix = weight.dim() == 2 and not self._is_only_looked_up(owner)
            if not is_matrix or self._is_ours(name, weight, owner):
                continue
            shape = (int(weight.shape[1]), int(weight.shape[0]))
            if shape not in asked:
                asked[shape] = dense.gemm_rows_keep_their_bits(*shape)
            if not asked[shape]:
                unstable.append(name)
        return unstable

    def _is_only_looked_up(self, owner: torch.nn.Module) -> bool:
        is_tied = getattr(self.template.config, "tie_word_embeddings", False)
        return isinstance(owner, torch.nn.Embedding) and not is_tied

    def _is_ours(self, name: str, weight: Tensor, owner: torch.nn.Module) -> bool:
        """Whether rows are multiplied with a weight by our own compiled kernel only."""
        # An embedding that is asked about is the output layer's weight too, which is a RowLinear.
        is_row_wise = isinstance(owner, RowLinear | RowGate | torch.nn.Embedding)
        is_asked = is_row_wise or name in self.template.moectl_row_weights
        return is_asked and dense.is_compiled(weight)

    @torch.inference_mode()
    def idle(self, moe: MoeRunner) -> None:
        """Keep step with the other ranks without own rows: one empty call per MoE layer."""
        shape = self.shape
        x_NH = torch.zeros((0, shape.hidden), dtype=self._dtype)
        ids_NK = torch.zeros((0, shape.experts_per_token), dtype=torch.int64)
        weights_NK = torch.zeros((0, shape.experts_per_token), dtype=self._dtype)
        for layer in range(len(self._seats)):
            moe.run(layer, x_NH, ids_NK, weights_NK)
