"""Counts of every family equal what transformers builds from the same (shrunken) config."""

from typing import Any

import pytest

from moectl.cli import catalogue
from moectl.placement.executable import ARCHITECTURES
from moectl.placement.families import READERS, read_shape

# Card -> changes that make the model small; ratios that the formulas depend on stay apart.
SMALL: dict[str, dict[str, Any]] = {
    "deepseek-v3": {"num_hidden_layers": 4, "n_routed_experts": 16, "vocab_size": 1024},
    "deepseek-v2-lite": {"num_hidden_layers": 3, "n_routed_experts": 8, "vocab_size": 1024},
    "glm-4.5": {"num_hidden_layers": 4, "n_routed_experts": 8, "vocab_size": 1024},
    "qwen3-30b-a3b": {"num_hidden_layers": 2, "num_experts": 8, "vocab_size": 1024},
    "qwen3-next-80b-a3b": {"num_hidden_layers": 4, "num_experts": 16, "vocab_size": 1024},
    "mixtral-8x7b": {"num_hidden_layers": 2, "vocab_size": 1024},
    "gpt-oss-20b": {"num_hidden_layers": 2, "vocab_size": 1024},
    "minimax-m2.5": {"num_hidden_layers": 2, "num_local_experts": 16, "vocab_size": 1024},
    "qwen2.5-7b-1m": {"num_hidden_layers": 2, "vocab_size": 1024},
    "qwen3-32b": {"num_hidden_layers": 2, "vocab_size": 1024},
}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_count_equals_the_built_model(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = {**catalogue.cards()[name]["config"], **SMALL[name]}
    settings = transformers.AutoConfig.for_model(config["model_type"], **_without_type(config))
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(settings)
    built = sum(parameter.numel() for parameter in model.parameters())
    counted = read_shape(config).total_parameters
    # Routers' score corrections are buffers there and parameters of the published total here.
    assert abs(counted - built) <= 4 * 16 + 64, (counted, built)


def _without_type(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("model_type",)}


def test_every_family_that_our_engine_serves_can_be_planned() -> None:
    assert set(READERS) >= ARCHITECTURES


@pytest.mark.parametrize("name", ["Qwen2MoeConfig", "OlmoeConfig"])
def test_families_without_a_card_equal_the_built_model_too(name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    settings = getattr(transformers, name)(
        num_hidden_layers=3,
        hidden_size=64,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=8,
        vocab_size=128,
        **(
            {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 40}
            | {"mlp_only_layers": [1]}
            if name == "Qwen2MoeConfig"
            else {}
        ),
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(settings)
    built = sum(parameter.numel() for parameter in model.parameters())
    plain = {**settings.to_dict(), "architectures": [type(model).__name__]}
    assert read_shape(plain).total_parameters == built
