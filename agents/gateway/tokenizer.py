"""How does text become token ids and back, for one model folder? No torch, no transformers.

Reads tokenizer.json with the `tokenizers` library and renders the chat template in a jinja2
sandbox, since a template is code that came with a download. A folder that lacks a piece is a
CheckpointError that names it; a missing chat template only refuses chat.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers

from ...core.errors import CheckpointError

TEMPLATE_BYTES_MAX = 1 << 20  # real templates are a few kilobytes
RENDERED_CHARACTERS_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class TextModel:
    """Everything about a model that is text: vocabulary, end tokens, template, context."""

    tokenizer: tokenizers.Tokenizer
    template: jinja2.Template | None
    special: dict[str, str]  # "bos_token" and the like, as the template sees them
    eos_ids: tuple[int, ...]
    context_tokens: int
    vocabulary: int
    byte_of: dict[str, int]  # of a byte-level vocabulary: the byte behind each of its letters

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the tokenizer itself adds."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a conversation; raises ValueError when the template refuses it."""
        if self.template is None:
            raise ValueError("this model has no chat template: use /v1/completions")
        try:
            text = self.template.render(
                messages=list(messages), add_generation_prompt=True, **self.special
            )
        except (jinja2.TemplateError, TypeError, AttributeError, ArithmeticError) as error:
            raise ValueError(f"the chat template refused the messages: {error}") from error
        if len(text) > RENDERED_CHARACTERS_MAX:
            raise ValueError(f"the chat template made {len(text)} characters of the messages")
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        """What one token stands for; a part of a character has only its own bytes."""
        piece = self.tokenizer.id_to_token(token) or ""
        if self.byte_of and all(letter in self.byte_of for letter in piece):
            return bytes(self.byte_of[letter] for letter in piece)
        text: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return text.encode("utf-8", "replace")

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def load_text_model(folder: Path) -> TextModel:
    """Read a model folder; raises CheckpointError naming the file that is missing or broken."""
    config = _read_json(folder / "config.json")
    settings = _read_json(folder / "tokenizer_config.json", required=False)
    generation = _read_json(folder / "generation_config.json", required=False)
    path = folder / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for everything
        raise CheckpointError(f"{path}: not a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    text_config = config.get("text_config") or config
    return TextModel(
        tokenizer=tokenizer,
        template=_load_template(folder, settings),
        special=_special_tokens(settings),
        eos_ids=_eos_ids(tokenizer, settings, generation, config),
        context_tokens=int(text_config.get("max_position_embeddings") or 0),
        vocabulary=int(text_config.get("vocab_size") or tokenizer.get_vocab_size()),
        byte_of=_byte_letters() if _is_byte_level(tokenizer) else {},
    )


def _read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    if not path.exists() and not required:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(name)
        found[name] = (value.get("content") if isinstance(value, dict) else value) or ""
    return found


def _eos_ids(
    tokenizer: tokenizers.Tokenizer, settings: dict[str, Any], *configs: dict[str, Any]
) -> tuple[int, ...]:
    """generation_config.json speaks first, then config.json, then the tokenizer's eos_token."""
    for config in configs:
        value = config.get("eos_token_id")
        if value is not None:
            return tuple(value) if isinstance(value, list) else (int(value),)
    token_id = tokenizer.token_to_id(_special_tokens(settings)["eos_token"])
    return () if token_id is None else (token_id,)


def _is_byte_level(tokenizer: tokenizers.Tokenizer) -> bool:
    return "ByteLevel" in json.dumps(json.loads(tokenizer.to_str()).get("decoder"))


def _byte_letters() -> dict[str, int]:
    """Byte-level vocabularies write printable bytes as themselves, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return letters | {chr(256 + at): byte for at, byte in enumerate(others)}


def _load_template(folder: Path, settings: dict[str, Any]) -> jinja2.Template | None:
    path = folder / "chat_template.jinja"
    source = path.read_text(encoding="utf-8") if path.exists() else settings.get("chat_template")
    if isinstance(source, list):  # several named templates: the default one is for chat
        source = next((item["template"] for item in source if item.get("name") == "default"), None)
    if not isinstance(source, str):
        return None
    if len(source) > TEMPLATE_BYTES_MAX:
        raise CheckpointError(f"{folder}: the chat template has {len(source)} characters")
    try:
        return _environment().from_string(source)
    except jinja2.TemplateError as error:
        raise CheckpointError(f"{folder}: the chat template is broken: {error}") from error


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The environment that published chat templates are written for."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, indent: int | None = None, **_options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
