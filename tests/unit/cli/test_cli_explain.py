"""`moectl explain`: every field that people write has a sentence, and none outlives its field."""

import pytest

from moectl.cli.explaining import explanation
from moectl.core.errors import UsageError
from moectl.core.spec.words import WORDS


@pytest.mark.parametrize("path", sorted(WORDS))
def test_every_sentence_is_about_a_field_that_is_there(path) -> None:
    kind, _, field = path.partition(".")
    lines = explanation(f"{kind.lower()}.{field}")
    assert lines[:1] == [f"KIND:   {kind}"] and WORDS[path] in lines


def test_what_a_newcomer_writes_first_is_explained_in_the_list_of_its_parent() -> None:
    lines = "\n".join(explanation("model.parallelism"))
    assert "experts" in lines and "moectl scale" in lines
    assert "default 32MiB" in "\n".join(explanation("model.memory"))


def test_a_field_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(UsageError) as refused:
        explanation("model.engine.nope")
    assert "prefillChunk" in refused.value.next_step
