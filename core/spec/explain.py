"""From pydantic's errors to mistakes that a person can mend: reason, fix, and what was meant.

Pure translation; the only file that knows how pydantic words its errors.
"""

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from .types import SpecModel
from .values import Finding, Path

WORD_OF_TYPE = {dict: "an object", list: "a list", str: "text", bool: "a boolean"}
WORD_OF_TYPE |= {int: "a whole number", float: "a number", type(None): "nothing"}


def findings_of(error: ValidationError, model: type[SpecModel]) -> list[Finding]:
    """Each of pydantic's errors as a finding with a path in the words of the file."""
    return [
        _finding(detail, model)
        for detail in error.errors(include_url=False)
        # Pydantic counts only the good items of a list; the bad ones have their own errors.
        if not (detail["type"] == "too_short" and len(detail["input"]) > 0)
    ]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean "x"? ` when a known word is near, then all known words."""
    words = list(known)
    lower = {name.lower().replace("_", ""): name for name in words}
    flat = word.lower().replace("_", "").replace("-", "")
    near = [lower[flat]] if flat in lower else difflib.get_close_matches(word, words, 1, 0.7)
    known_text = ", ".join(words)
    return f"did you mean {near[0]!r}? known: {known_text}" if near else f"known: {known_text}"


def field_names(model: type[SpecModel]) -> list[str]:
    """The fields of a part of a spec, as they are written in a file."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _finding(detail: Any, model: type[SpecModel]) -> Finding:
    kind, path, context = detail["type"], tuple(detail["loc"]), detail.get("ctx", {})
    if kind == "moectl":
        return Finding(path, context["reason"], context["fix"])
    if kind == "extra_forbidden":
        known = field_names(_model_at(model, path[:-1]))
        return Finding(path, "unknown field", did_you_mean(str(path[-1]), known))
    if kind == "missing":
        return Finding(path, "this field is missing", _add_fix(model, path))
    if kind == "literal_error":
        return _choice(detail, path, context)
    return Finding(path, *_type_texts(kind, detail["input"], context, detail["msg"]))


def _choice(detail: Any, path: Path, context: Any) -> Finding:
    allowed = str(context["expected"]).replace("'", "").replace(" or ", ", ").split(", ")
    fix = did_you_mean(str(detail["input"]), allowed).replace("known:", "use one of:")
    return Finding(path, f"{detail['input']!r} is not a choice", fix)


def _add_fix(model: type[SpecModel], path: Path) -> str:
    child = _model_at(model, path)
    inside = "" if child is _model_at(model, path[:-1]) else f" with {', '.join(_required(child))}"
    return f"add {str(path[-1])!r}{inside}"


def _required(model: type[SpecModel]) -> list[str]:
    return [f.alias or name for name, f in model.model_fields.items() if f.is_required()] or ["{}"]


def _type_texts(kind: str, value: Any, context: Any, message: str) -> tuple[str, str]:
    """Reason and fix of an error about the type or the size of one value."""
    shown = WORD_OF_TYPE.get(type(value), type(value).__name__)
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        shown = f"{shown} ({value!r})"
    limits = {
        "greater_than_equal": ("is too small", "ge", "use {} or more"),
        "less_than_equal": ("is too large", "le", "use {} or less"),
        "greater_than": ("is too small", "gt", "use more than {}"),
    }
    if kind in limits:
        reason, key, fix = limits[kind]
        return f"{value!r} {reason}", fix.format(context[key])
    if kind == "too_short":
        return "the list is empty", f"add at least {context['min_length']}"
    if kind == "too_long":
        return f"{context['actual_length']} items", f"use at most {context['max_length']}"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        return f"expected an object, found {shown}", "write fields below it, indented"
    if kind in ("list_type", "tuple_type"):
        return f"expected a list, found {shown}", "start each item with '- '"
    if kind == "int_type":
        return f"expected a whole number, found {shown}", "write digits without quotes"
    if kind == "string_type":
        return f"expected text, found {shown}", "put quotes around it"
    return f"{message[:1].lower()}{message[1:]}, found {shown}", "see the schema of this kind"


def _model_at(model: type[SpecModel], path: Path) -> type[SpecModel]:
    """The part of the spec that a path leads into; the last one on the way for a plain value."""
    for step in path:
        if isinstance(step, int):
            continue
        by_alias = {field.alias or name: field for name, field in model.model_fields.items()}
        inner = _inner_model(by_alias[step].annotation) if step in by_alias else None
        if inner is None:
            return model
        model = inner
    return model


def _inner_model(annotation: Any) -> type[SpecModel] | None:
    """The SpecModel inside `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, SpecModel) else None
    found = (_inner_model(argument) for argument in typing.get_args(annotation))
    return next((inner for inner in found if inner is not None), None)
