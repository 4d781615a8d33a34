"""Which tokens may come next, when the text must follow a JSON schema or a regular expression?

A thin shell over llguidance, which is loaded when the first such request comes and never before:
an engine without constrained requests neither needs nor imports it. One `Grammars` per engine holds
the tokenizer in the library's form; one `Matcher` per request follows its text. A matcher only
moves when a token is final, so a step that fails costs nothing.
"""

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import EngineError
from .progress import EngineRefused
from .request import Grammar

#: A schema or expression longer than this is refused unread: it came over the network.
TEXT_BYTES_MAX = 256 * 1024

#: One way to write a value: a model that may put blanks anywhere may put them there for ever. A
#: schema's own `x-guidance` says otherwise.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Matcher:
    """One request's place in its grammar."""

    def __init__(self, matcher: Any, vocab: int, eos_ids: tuple[int, ...]) -> None:
        self._matcher, self._vocab, self._eos_ids = matcher, vocab, eos_ids

    def allowed(self) -> np.ndarray:
        """Which tokens may come next: bool [V], at least one true."""
        if self._matcher.is_stopped():
            allowed_V = np.zeros(self._vocab, dtype=bool)
            allowed_V[list(self._eos_ids)] = True
            return allowed_V
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._vocab].astype(bool)

    def accept(self, token: int) -> None:
        """A token is final. Raises EngineError when the grammar does not allow it."""
        if token in self._eos_ids:
            return
        if not self._matcher.consume_token(token):
            raise EngineError(f"token {token} is outside the grammar: {self._matcher.get_error()}")


class Grammars:
    """Makes matchers for one model's tokenizer. `folder` holds its tokenizer.json."""

    def __init__(self, folder: Path | str, vocab: int) -> None:
        self._folder, self._vocab = Path(folder), vocab
        self._tokenizers: dict[tuple[int, ...], Any] = {}

    def matcher(
        self, grammar: Grammar, eos_ids: tuple[int, ...], already: Iterable[int] = ()
    ) -> Matcher:
        """A matcher at its beginning, or behind the tokens of a replay.

        Raises: EngineRefused for a grammar that the library does not take, or without the library.
        """
        if len(grammar.text.encode()) > TEXT_BYTES_MAX:
            raise EngineRefused(f"a grammar of more than {TEXT_BYTES_MAX} bytes")
        if not eos_ids:
            raise EngineRefused("a grammar needs an end-of-sequence token to end with")
        library = _library()
        try:
            compiled = _compile(library, grammar)
        except ValueError as error:
            raise EngineRefused(f"the {grammar.kind} cannot be read: {error}") from error
        held = library.LLMatcher(self._tokenizer(library, eos_ids), compiled, log_level=0)
        if held.is_error():
            raise EngineRefused(f"the {grammar.kind} is not supported: {held.get_error()[:300]}")
        matcher = Matcher(held, self._vocab, eos_ids)
        for token in already:
            try:
                matcher.accept(token)
            except EngineError as error:
                raise EngineRefused(f"the replayed text breaks its grammar: {error}") from error
        return matcher

    def _tokenizer(self, library: Any, eos_ids: tuple[int, ...]) -> Any:
        """The model's tokenizer with these ends; a model has one or two sets of them."""
        if eos_ids not in self._tokenizers:
            file = self._folder / "tokenizer.json"
            try:
                text = file.read_text(encoding="utf-8")
                made = library.LLTokenizer(text, n_vocab=self._vocab, eos_token=list(eos_ids))
            except (OSError, ValueError) as error:
                raise EngineRefused(f"{file}: no tokenizer for grammars: {error}") from error
            if len(self._tokenizers) > 8:
                self._tokenizers.clear()
            self._tokenizers[eos_ids] = made
        return self._tokenizers[eos_ids]


def _library() -> Any:
    """The library, which a bare GPU machine may lack: only constrained requests need it."""
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise EngineRefused("grammars need the llguidance package on this node") from error


def _compile(library: Any, grammar: Grammar) -> str:
    match grammar.kind:
        case "json_schema":
            return str(library.LLMatcher.grammar_from_json_schema(grammar.text, dict(JSON_STYLE)))
        case "regex":
            return str(library.LLMatcher.grammar_from_regex(grammar.text))
        case other:
            raise EngineRefused(f"{other!r} is no kind of grammar; json_schema and regex are")
