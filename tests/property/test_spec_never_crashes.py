"""Whatever stands in a file, the loader answers with documents or with mistakes to mend."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from moectl.core.errors import SpecError
from moectl.core.spec import load_text

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["5s", "64MiB", "cpu", "n1", "", "127.0.0.1", "{reason}", "x" * 50]),
)
FIELDS = ["nodes", "name", "devices", "id", "hbm", "pageSize", "kind", "leaseTtl", "source", "path"]
FIELDS += ["parallelism", "experts", "engine", "maxBatchTokens", "prefillChunk", "slo", "ttft", "0"]
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4)
    ),
    max_leaves=12,
)


def check(text: str) -> None:
    try:
        documents = load_text(text, "x.yaml")
    except SpecError as error:
        lines = text.count("\n") + 1
        assert error.mistakes
        for mistake in error.mistakes:
            assert mistake.reason and mistake.fix and mistake.path
            assert 1 <= mistake.line <= lines + 1
    else:
        assert documents


@given(st.sampled_from(["Cluster", "Model"]), VALUES)
def test_any_value_as_a_spec_is_read_or_refused(kind: str, value: Any) -> None:
    import yaml

    document = {"apiVersion": "moectl.dev/v1", "kind": kind, "metadata": {"name": "x"}}
    check(yaml.safe_dump({**document, "spec": value}))


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!|>'\"#%@`\n\t ,?0\\"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    check(text)
