"""Model facts: every shipped card sums to what is published, and no config is guessed."""

import pytest

from moectl.cli import catalogue
from moectl.core.errors import CheckpointError
from moectl.placement.families import READERS, read_shape

CARDS = {
    name: card
    for name, card in catalogue.cards().items()
    if card["config"]["architectures"][0] in READERS
}


@pytest.mark.parametrize("name", sorted(CARDS))
def test_a_card_sums_to_its_published_total(name: str) -> None:
    card = CARDS[name]
    shape = read_shape(card["config"])
    assert sum(count for _, count in shape.breakdown()) == shape.total_parameters
    published = card["published"]["totalBillion"]
    if published is not None:
        rounding = card["published"].get("roundedToBillion", 0) / 2
        gap = abs(shape.total_parameters / 1e9 - published) - rounding
        assert gap / published <= 0.005


@pytest.mark.parametrize("name", sorted(CARDS))
def test_a_card_caches_what_is_published_for_a_token(name: str) -> None:
    published = CARDS[name]["published"].get("kvElementsPerToken")
    if published is not None:
        assert read_shape(CARDS[name]["config"]).kv_elements_per_token == published


def test_a_token_uses_fewer_parameters_than_there_are_experts_for() -> None:
    for name, card in CARDS.items():
        shape = read_shape(card["config"])
        published = card["published"]["activeBillion"]
        if shape.is_moe and published and published >= 10:
            assert abs(shape.active_parameters / 1e9 / published - 1) < 0.08, name
        assert shape.active_parameters < shape.total_parameters


def test_windows_stop_the_cache_from_growing() -> None:
    shape = read_shape(CARDS["gpt-oss-120b"]["config"])
    growth = shape.kv_elements(20_001) - shape.kv_elements(20_000)
    assert (growth, shape.kv_elements_per_token) == (18_432, 36_864)


def test_linear_attention_keeps_a_state_and_no_cache() -> None:
    shape = read_shape(CARDS["qwen3-next-80b-a3b"]["config"])
    assert shape.kv_elements_per_token == 12_288
    assert shape.state_elements == 36 * 32 * 128 * 128


def test_a_null_query_rank_means_a_straight_projection() -> None:
    config = dict(CARDS["deepseek-v2-lite"]["config"])
    straight = read_shape(config).groups[0].attention.parameters
    ranked = read_shape({**config, "q_lora_rank": 1536}).groups[0].attention.parameters
    assert straight - ranked == 2048 * 16 * 192 - (2048 * 1536 + 1536 + 1536 * 16 * 192)


def test_llama4_takes_the_dense_width_from_its_own_field() -> None:
    shape = read_shape(CARDS["llama-4-maverick"]["config"])
    widths = {(g.feed_forward.experts > 0, g.feed_forward.dense_inner) for g in shape.groups}
    assert widths == {(True, 8192), (False, 16384)}
    assert shape.moe_layers == 24


def test_an_incomplete_card_is_refused_naming_what_is_missing() -> None:
    with pytest.raises(CheckpointError, match="num_experts_per_token"):
        catalogue.find_shape("kimi-k3")


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match="NewForCausalLM") as refusal:
        read_shape({"architectures": ["NewForCausalLM"]})
    assert "Qwen3MoeForCausalLM" in refusal.value.next_step


@pytest.mark.parametrize("field", ["hidden_size", "num_experts_per_tok", "n_routed_experts"])
def test_a_config_without_a_field_names_it(field: str) -> None:
    config = {k: v for k, v in CARDS["deepseek-v3"]["config"].items() if k != field}
    with pytest.raises(CheckpointError, match=field):
        read_shape(config)


def test_a_field_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not a positive integer"):
        read_shape({**CARDS["deepseek-v3"]["config"], "hidden_size": "7168"})


def test_a_repository_of_the_same_shape_finds_the_card() -> None:
    assert catalogue.find_shape("deepseek-ai/DeepSeek-R1")[0] == "deepseek-v3"
