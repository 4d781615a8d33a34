"""Tokens to text and back: nothing lost, nothing shown too early."""

import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moectl.agents.gateway.detokenize import Detokenizer
from moectl.agents.gateway.stops import StopMatcher
from moectl.agents.gateway.tokenizer import load_text_model
from moectl.core.errors import CheckpointError


def pieces_of(model, ids):
    detokenizer = Detokenizer(model.decode)
    pieces = [detokenizer.push([token]) for token in ids]
    return [*pieces, detokenizer.finish()]


def test_a_character_is_shown_when_its_last_byte_is_there(model_folder):
    model = load_text_model(model_folder)
    text = "naïve ☕🎉字 café"
    pieces = pieces_of(model, model.encode(text))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back_whole(model_folder, text):
    model = load_text_model_once(model_folder)
    ids = model.encode(text)
    assert "".join(pieces_of(model, ids)) == model.decode(ids)


_LOADED: dict = {}


def load_text_model_once(folder):
    if folder not in _LOADED:
        _LOADED[folder] = load_text_model(folder)
    return _LOADED[folder]


def test_random_tokens_lose_nothing_but_broken_bytes(model_folder):
    model = load_text_model(model_folder)
    rng = random.Random(5)
    for _ in range(60):
        ids = [rng.randrange(1, 390) for _ in range(120)]
        shown = "".join(pieces_of(model, ids)).replace("\ufffd", "")
        assert shown == model.decode(ids).replace("\ufffd", "")


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(alphabet="ab<|>", max_size=40),
    stops=st.lists(st.text(alphabet="ab<|>", min_size=1, max_size=5), max_size=4),
    cuts=st.lists(st.integers(0, 40), max_size=8),
)
def test_a_stop_string_is_found_however_the_text_is_cut(text, stops, cuts):
    matcher = StopMatcher(stops)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    shown = "".join(matcher.push(text[a:b]) for a, b in itertools.pairwise(edges))
    found = [text.find(stop) for stop in stops if stop in text]
    if found:
        # Cut early, a later stop may complete first; what is shown never holds a whole stop string.
        assert matcher.is_stopped
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
    else:
        assert not matcher.is_stopped
        assert shown + matcher.finish() == text


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("tokenizer.json", "{", "tokenizer.json"),
        ("tokenizer.json", None, "tokenizer.json"),
        ("config.json", "[]", "config.json"),
        ("chat_template.jinja", "{% for %}", "template is broken"),
    ],
)
def test_a_broken_folder_is_an_error_that_names_the_file(
    model_folder, tmp_path, name, content, said
):
    for path in model_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=said):
        load_text_model(tmp_path)


def test_a_template_cannot_reach_python(model_folder, tmp_path):
    for path in model_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    (tmp_path / "chat_template.jinja").write_text(attack)
    with pytest.raises(ValueError, match="refused the messages"):
        load_text_model(tmp_path).encode_chat([{"role": "user", "content": "x"}])


def test_the_template_may_stand_in_the_tokenizer_settings(model_folder, tmp_path):
    for path in model_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "chat_template.jinja").unlink()
    settings_text = {
        "eos_token": {"content": "<|endoftext|>"},
        "chat_template": [{"name": "default", "template": "{{ eos_token }}{{ messages|length }}"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_text))
    model = load_text_model(tmp_path)
    assert model.encode_chat([{"role": "user", "content": "x"}])[0] == 0
    assert model.eos_ids == (0,)
