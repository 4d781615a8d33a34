"""In which type weights are held: what the spec asks for, and what a checkpoint says of itself."""

import pytest

from moectl.core.dtypes import checkpoint_dtype, expert_dtype


@pytest.mark.parametrize(
    ("asked", "precision", "checkpoint", "held"),
    [
        ("auto", "standard", "bfloat16", "float32"),
        ("auto", "reproducible", "bfloat16", "bfloat16"),
        ("auto", "reproducible", "float32", "float32"),  # rounding would change what it says
        ("auto", "reproducible", "float16", "float32"),
        ("bfloat16", "standard", "float32", "bfloat16"),
        ("float32", "reproducible", "bfloat16", "float32"),
    ],
)
def test_experts_are_held_as_asked_or_without_loss(asked, precision, checkpoint, held):
    assert expert_dtype(asked, precision, checkpoint) == held


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"text_config": {"torch_dtype": "bfloat16"}}, "bfloat16"),
        ({}, "float32"),
        ({"dtype": None}, "float32"),
    ],
)
def test_a_config_says_its_dtype_under_several_names(config, dtype):
    assert checkpoint_dtype(config) == dtype
