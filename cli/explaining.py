"""What is said about a field of a spec? Made from the types themselves, so it cannot grow stale."""

import inspect
from typing import Any

from ..core.errors import UsageError
from ..core.spec.load import KINDS
from ..core.spec.schema import json_schema
from ..core.spec.words import words_of
from ..core.units import exact_bytes


def explanation(path: str) -> list[str]:
    """Lines about "model", "model.engine" or "model.engine.dtype"; raises UsageError."""
    words = [word for word in path.split(".") if word]
    kinds = {kind.lower(): kind for kind in KINDS}
    if not words or words[0].lower() not in kinds:
        names = ", ".join(sorted(kinds))
        raise UsageError(f"{path!r} names no kind", next_step=f"begin with one of: {names}")
    kind, steps = kinds[words[0].lower()], [word for word in words[1:] if word != "spec"]
    schema = json_schema()
    node = schema["$defs"][kind]["properties"]["spec"]
    for number, step in enumerate(steps):
        inner = _inside(node, schema)
        if step not in inner:
            where = ".".join([words[0], *steps[:number]])
            known = ", ".join(inner) or "nothing: it is a value"
            raise UsageError(f"{where} has no field {step!r}", next_step=f"it has: {known}")
        node = inner[step]
    return _lines(kind, steps, node, schema)


def _lines(kind: str, steps: list[str], node: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    told = _resolved(node, schema)
    lines = [f"KIND:   {kind}", f"FIELD:  {'.'.join(['spec', *steps])} <{_type(node, schema)}>"]
    if "default" in node and not _inside(node, schema):
        lines.append(f"DEFAULT: {_default(node)}")
    about = words_of(kind, ".".join(steps))
    text = about or node.get("description") or told.get("description") or ""
    text = text or _body(node, schema).get("description", "")
    if not steps:
        text = inspect.cleandoc(KINDS[kind].model.__doc__ or "")
    lines += ["", text] if text else []
    inner = _inside(node, schema)
    if inner:
        needed = set(_body(node, schema).get("required", ()))
        lines += ["", "FIELDS:"]
        for name, field in inner.items():
            mark = " (required)" if name in needed else ""
            has_default = "default" in field and not _inside(field, schema)
            default = f", default {_default(field)}" if has_default else ""
            lines.append(f"  {name} <{_type(field, schema)}>{mark}{default}")
            about = words_of(kind, ".".join([*steps, name]))
            lines += [f"      {about}"] if about else []
    return lines


def _default(node: dict[str, Any]) -> str:
    """A default as people write it: bytes as 32MiB, nothing as none."""
    value = node["default"]
    is_bytes = isinstance(value, int) and any("GiB" in str(o) for o in node.get("anyOf", ()))
    return exact_bytes(value) if is_bytes else "none" if value is None else str(value)


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The node behind references; an optional field is what it may hold besides nothing."""
    while True:
        options = [o for o in node.get("anyOf", ()) if o.get("type") != "null"]
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
        elif len(options) == 1:
            node = options[0]
        else:
            return node


def _body(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The object that fields are looked for in; of a list, its items."""
    found = _resolved(node, schema)
    # A part with a short form, such as `parallelism: auto`, is still explained by its fields.
    whole = next((o for o in found.get("anyOf", ()) if "properties" in o), found)
    return _resolved(whole["items"], schema) if whole.get("type") == "array" else whole


def _inside(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = _body(node, schema).get("properties", {})
    return fields


def _type(node: dict[str, Any], schema: dict[str, Any]) -> str:
    found = _resolved(node, schema)
    if "const" in found:
        return str(found["const"])
    if "enum" in found:
        return " | ".join(map(str, found["enum"]))
    if "anyOf" in found:
        return " | ".join(_type(option, schema) for option in found["anyOf"])
    text = str(found.get("type", "any"))
    if text == "array":
        return f"list of {_type(found['items'], schema)}"
    examples = found.get("examples")
    limits = [f"{k} {found[k]}" for k in ("minimum", "maximum", "maxLength") if k in found]
    detail = f" such as {examples[0]}" if examples else ""
    return text + detail + (f" ({', '.join(limits)})" if limits else "")
