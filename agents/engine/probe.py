"""What does a model do, as far as an engine has to care? Ask it, on the meta device.

A model is not recognised by its name. Its experts modules say how they keep their tensors, their
gate is computed on a few random numbers, and the whole model is run once without memory while every
call to attention and to the experts is noted: which layers attend, over what, with which
arguments. What this engine would get wrong is a reason to refuse, never a surprise in the output.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...kernels.experts import ClampedGate
from . import hooks
from .forms import ExpertForm, KvForm

#: Rows of the trial run: more than the floor of any kernel, else without meaning.
ROWS = 5
#: Attention arguments that change nothing here, or that the engine answers for.
KNOWN = {"scaling", "sliding_window", "s_aux", "moectl", "dropout", "position_ids", "use_cache"}
KNOWN |= {"position_embeddings", "output_attentions", "output_hidden_states", "is_causal"}
KNOWN |= {"output_router_logits"}
#: Rotary frequencies that follow the longest row of a batch: a row would depend on its company.
BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}


class Refusal(Exception):
    """Why the engine cannot run a model; never leaves the template's builder."""


@dataclass(frozen=True, slots=True)
class Forms:
    """What a model turned out to be."""

    expert: ExpertForm
    kv: KvForm
    experts_per_token: int


@dataclass(frozen=True, slots=True)
class _Attended:
    layer: int
    key: tuple[int, int]  # heads, width
    value: tuple[int, int]
    window: int | None
    module: Any


@dataclass
class _Trial:
    """A Visitor that notes what it is asked, and answers with tensors of the right shape."""

    attended: list[_Attended] = field(default_factory=list)
    routed: list[tuple[int, int, int]] = field(default_factory=list)  # MoE layer, K, H
    latents: list[tuple[int, int]] = field(default_factory=list)

    def attend(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, kwargs: dict[str, Any]
    ) -> Tensor:
        """See Visitor.attend."""
        odd = [name for name, value in kwargs.items() if name not in KNOWN and _is_set(value)]
        if odd:
            raise Refusal(f"its attention takes {', '.join(sorted(odd))}")
        if getattr(module, "is_causal", True) is False:
            raise Refusal("its attention looks ahead")
        key, value = (k.shape[1], k.shape[3]), (v.shape[1], v.shape[3])
        window = hooks.window_of(module, kwargs)
        self.attended.append(_Attended(module.layer_idx, key, value, window, module))
        return q.new_empty(1, q.shape[2], q.shape[1], v.shape[3])

    def update(self, plain: Tensor, rotated: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """See Step.update."""
        self.latents.append((plain.shape[-1], rotated.shape[-1]))
        return plain, rotated

    def experts(self, layer: int, x_TH: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """See Visitor.experts."""
        self.routed.append((layer, ids_TK.shape[1], x_TH.shape[1]))
        return torch.empty_like(x_TH)


def expert_form(modules: list[Any]) -> ExpertForm:
    """The one form of all routed experts. Raises Refusal."""
    if not modules:
        raise Refusal("it has no routed experts")
    forms = {_expert_form(module) for module in modules}
    if len(forms) > 1:
        raise Refusal("its layers have experts of different shapes")
    return forms.pop()


def _expert_form(module: Any) -> ExpertForm:
    wanted = {"gate_up_proj", "down_proj"}
    wanted |= {"gate_up_proj_bias", "down_proj_bias"} if module.has_bias else set()
    found = {name for name, value in module._parameters.items() if value is not None}
    if not module.has_gate or found != wanted or module._buffers:
        raise Refusal(f"its experts hold {sorted(found)}, expected {sorted(wanted)}")
    if getattr(module, "has_post_expert_norm", False):
        raise Refusal("its experts end with a norm")
    count, rows, columns = module.gate_up_proj.shape
    hidden, inner = (rows, columns // 2) if module.is_transposed else (columns, rows // 2)
    activation, clamped = _gate(module)
    return ExpertForm(
        count,
        hidden,
        inner,
        bool(module.has_bias),
        bool(module.is_transposed),
        not module.is_concatenated,
        activation,
        clamped,
    )


@torch.no_grad()
def _gate(module: Any) -> tuple[str, ClampedGate | None]:
    """Which of the gates that the kernels know an experts module computes."""
    generator = torch.Generator().manual_seed(0)
    gate, up = torch.randn(2, 8, 16, generator=generator) * 8
    both = torch.cat((gate, up), -1)
    if not module.is_concatenated:
        both = torch.stack((gate, up), -1).flatten(-2)
    wanted = module._apply_gate(both)
    alpha, limit = getattr(module, "alpha", None), getattr(module, "limit", None)
    if isinstance(alpha, int | float) and isinstance(limit, int | float) and limit > 0:
        clamped = ClampedGate(float(alpha), float(limit))
        if torch.allclose(clamped(gate, up), wanted, rtol=1e-4, atol=1e-5):
            return "clamped", clamped
    function = getattr(module, "act_fn", None)
    if callable(function) and torch.allclose(function(gate) * up, wanted, rtol=1e-4, atol=1e-5):
        is_silu = torch.allclose(function(gate), torch.nn.functional.silu(gate))
        return "silu" if is_silu else _activation_name(module), None
    raise Refusal("its experts compute a gate that the kernels do not know")


def _activation_name(module: Any) -> str:
    config = module.config
    return str(getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", "silu"))


def try_forward(template: Any, seats: list[hooks.Seat], layers: int) -> tuple[KvForm, int]:
    """Run the model once without memory: its KV form and its experts per token. Raises Refusal."""
    _check_config(template.config)
    trial = _run(template, seats, _Trial(), None)
    seen = [call.layer for call in trial.attended]
    if seen != list(range(layers)):
        missing = sorted(set(range(layers)) - set(seen)) or seen
        raise Refusal(f"layers {missing[:8]} keep another state than keys and values")
    _check_windows(template.config, trial.attended)
    chosen = {k for _, k, _ in trial.routed}
    if [layer for layer, _, _ in trial.routed] != list(range(len(seats))) or len(chosen) != 1:
        raise Refusal("its experts are not called once a layer with the same number per token")
    kv = _kv_form(template, seats, trial)
    return kv, chosen.pop()


def rehearse(template: Any, seats: list[hooks.Seat]) -> None:
    """Run a model that passed once more without memory, for who wants its code and objects warm."""
    _run(template, seats, _Trial(), None)


def _run(template: Any, seats: list[hooks.Seat], trial: _Trial, past: Any) -> _Trial:
    for seat in seats:
        seat.step = trial
    extra = {"past_key_values": past} if past is not None else {}
    try:
        with torch.inference_mode():
            template(
                input_ids=torch.zeros(1, ROWS, dtype=torch.int64, device="meta"),
                position_ids=torch.arange(ROWS, device="meta").unsqueeze(0),
                attention_mask=None,
                use_cache=False,
                logits_to_keep=torch.zeros(1, dtype=torch.int64, device="meta"),
                moectl=trial,
                **extra,
            )
    except Refusal:
        raise
    except Exception as error:  # foreign code: whatever it raises is a reason not to run it
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise Refusal(f"its forward pass cannot be followed ({reason})") from error
    finally:
        for seat in seats:
            seat.step = None
    return trial


def _kv_form(template: Any, seats: list[hooks.Seat], trial: _Trial) -> KvForm:
    modules = [call.module for call in trial.attended]
    if all(hooks.is_latent(module) for module in modules):
        again = _Trial()
        _run(template, seats, again, again)
        if len(set(again.latents)) != 1 or len(again.latents) != len(modules):
            raise Refusal("its latent attention does not keep one latent a layer")
        latent, rotated = again.latents[0]
        return KvForm(len(modules), 1, latent + rotated, parts=1, latent=latent)
    shapes = {shape for call in trial.attended for shape in (call.key, call.value)}
    if len(shapes) > 1:
        raise Refusal(f"its keys and values have different shapes: {sorted(shapes)}")
    heads, width = shapes.pop()
    return KvForm(len(modules), heads, width)


def _check_config(config: Any) -> None:
    if getattr(config, "quantization_config", None):
        raise Refusal("its weights are quantized; save it in bfloat16 first")
    rope = getattr(config, "rope_parameters", None) or {}
    # One set of parameters, or one for each kind of layer.
    for each in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if each.get("rope_type") in BATCH_DEPENDENT_ROPE:
            raise Refusal(
                f"its rotary frequencies ({each['rope_type']}) depend on a batch's longest row"
            )


def _check_windows(config: Any, attended: list[_Attended]) -> None:
    """Masks are not built here: a window that attention does not hear of would be lost."""
    kinds = list(getattr(config, "layer_types", None) or [])
    odd = set(kinds) - {"full_attention", "sliding_attention"}
    if odd or getattr(config, "attention_chunk_size", None):
        raise Refusal(f"layers of kind {sorted(odd) or 'chunked_attention'}")
    for call in attended:
        slides = bool(kinds and kinds[call.layer] == "sliding_attention")
        if slides and not call.window and getattr(config, "sliding_window", None):
            raise Refusal(f"layer {call.layer} slides without telling its attention")
        if kinds and call.window and not slides:
            raise Refusal(f"layer {call.layer} tells its attention of a window that it has not")
    if not kinds and getattr(config, "sliding_window", None):
        uses = getattr(config, "use_sliding_window", True)
        if uses and not any(call.window for call in attended):
            raise Refusal("it has a sliding window that its attention does not hear of")


def _is_set(value: Any) -> bool:
    return not (value is None or value is False or (isinstance(value, int | float) and value == 0))
