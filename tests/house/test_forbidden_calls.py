"""What the product must never do: unpickle, start a shell, swallow errors, remember globally."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Their wire or file format runs code when read (multiprocessing sends pickles between processes).
PICKLING = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
PICKLING |= {"multiprocessing"}
FORBIDDEN_CALLS = {
    "os.system": "start a process from an argument list",
    "os.popen": "start a process from an argument list",
    "subprocess.getoutput": "start a process from an argument list",
    "subprocess.getstatusoutput": "start a process from an argument list",
    "asyncio.create_subprocess_shell": "start a process from an argument list",
    "torch.load": "read safetensors",
    "torch.save": "write safetensors",
    "yaml.load": "use core.spec, or yaml.safe_load",
    "yaml.unsafe_load": "use core.spec, or yaml.safe_load",
    "eval": "never run text",
    "exec": "never run text",
}
FORBIDDEN_ATTRIBUTES = {"all_gather_object", "broadcast_object_list", "gather_object"}
FORBIDDEN_ATTRIBUTES |= {"scatter_object_list", "send_object_list", "recv_object_list"}


def _calls(source: Any) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def _is_true(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def test_nothing_is_pickled(product: list[Any], imports: dict[str, Any]) -> None:
    wrong = [
        f"{module}:{item.line} imports {item.name}"
        for module, items in imports.items()
        for item in items
        if not item.is_ours and item.name.split(".")[0] in PICKLING
    ]
    wrong += [
        f"{source.path}:{call.lineno} {name}"
        for source in product
        for name, call in _calls(source)
        if name.split(".")[-1] in FORBIDDEN_ATTRIBUTES
        or any(k.arg == "allow_pickle" and _is_true(k.value) for k in call.keywords)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_shell_is_started_and_no_text_is_run(product: list[Any]) -> None:
    wrong = [
        f"{source.path}:{call.lineno} {name}: {FORBIDDEN_CALLS.get(name, 'no shell')}"
        for source in product
        for name, call in _calls(source)
        if name in FORBIDDEN_CALLS
        or any(k.arg == "shell" and not _is_false(k.value) for k in call.keywords)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def test_no_process_is_ended_by_its_name(product: list[Any]) -> None:
    names = {"pkill", "killall", "pgrep"}
    wrong = [
        f"{source.path}:{node.lineno} {node.value!r}"
        for source in product
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and names & set(node.value.split()[:1])
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_broad_except_gives_its_reason_or_raises_again(product: list[Any]) -> None:
    wrong = []
    for source in product:
        lines = source.text.splitlines()
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.ExceptHandler):
                continue
            caught = ast.unparse(node.type) if node.type else "everything"
            if caught not in ("everything", "Exception", "BaseException"):
                continue
            raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            has_reason = "#" in lines[node.lineno - 1] or "#" in lines[node.lineno]
            if not raises and (caught == "everything" or not has_reason):
                wrong.append(f"{source.path}:{node.lineno} except {caught}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_module_remembers_anything_globally(product: list[Any]) -> None:
    wrong = [
        f"{source.path}:{node.lineno} global {', '.join(node.names)}"
        for source in product
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Global)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_file_names_the_place_where_it_was_written(root: Path) -> None:
    if len(root.parts) < 3:
        return  # a checkout at the top of a disk: its name is an ordinary word
    wrong = []
    for pattern in ("**/*.py", "*.md", "docs/**/*.md", "clusters/**/*.yaml", "Makefile", "*.toml"):
        for path in root.glob(pattern):
            if ".venv" in path.parts or ".typing" in path.parts:
                continue
            if f"{root}/" in path.read_text(encoding="utf-8", errors="replace"):
                wrong.append(str(path))
    assert not wrong, "\n" + "\n".join(wrong)
