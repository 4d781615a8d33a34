"""Which fleet a command talks to, what a dry run is, and what Tab offers."""

import pytest
import typer.main

from moectl.cli import contexts, dry_run
from moectl.cli.completing import complete_context, complete_model
from moectl.cli.context_flag import HERE_ONLY
from moectl.cli.contexts import Context, Contexts
from moectl.cli.main import build_app
from moectl.core.errors import UsageError
from moectl.core.paths import Home

OWN_MEANING = {"init"}  # its --context counts tokens, and it asks no fleet


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    monkeypatch.setenv("MOECTL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(contexts.VARIABLE, "")  # and as it was before at the end
    found = Home.from_environment()
    prod = Context("https://moe.example:8470", "/none/token", "/none/ca.pem")
    contexts.save(found, Contexts("local", {"prod": prod}))
    return found


def commands(command, path=()):
    """(words, command) of every command that does something."""
    children = getattr(command, "commands", None)
    if not children:
        yield path, command
        return
    for name, child in children.items():
        yield from commands(child, (*path, name))


def options(command) -> set[str]:
    return {word for parameter in command.params for word in parameter.opts}


def test_every_command_takes_the_name_of_a_fleet() -> None:
    root = typer.main.get_command(build_app())
    assert "--context" in options(root)
    found = dict(commands(root))
    assert len(found) > 25
    assert [path for path, command in found.items() if "--context" not in options(command)] == []
    for path, command in found.items():
        if path[-1] in OWN_MEANING:
            continue
        (flag,) = [p for p in command.params if "--context" in p.opts]
        assert "moectl context list" in flag.help, path


def test_every_dry_run_is_of_one_kind() -> None:
    root = typer.main.get_command(build_app())
    flags = {
        path[-1]: parameter
        for path, command in commands(root)
        for parameter in command.params
        if "--dry-run" in parameter.opts
    }
    assert {"apply", "scale", "delete", "release"} <= set(flags)
    assert {flag.help for flag in flags.values()} == {dry_run.HELP}


def test_the_flag_comes_before_the_environment_and_that_before_the_file(home, monkeypatch) -> None:
    assert contexts.chosen(home) is None
    monkeypatch.setenv(contexts.VARIABLE, "prod")
    assert contexts.chosen(home).api == "https://moe.example:8470"
    contexts.choose("local")
    assert contexts.chosen(home) is None
    contexts.choose("")  # a command without the flag leaves what stood in front of it
    assert contexts.name_in_force(home) == "local"
    contexts.choose("nope")
    with pytest.raises(UsageError, match="nope") as refused:
        contexts.chosen(home)
    assert "prod" in refused.value.next_step


@pytest.mark.parametrize("command", sorted(HERE_ONLY))
def test_a_command_of_this_machine_refuses_another_fleets_name(home, command) -> None:
    needed = ["--socket", "s", "--device", "d"] if command == "hmm" else []
    for words in ([command, "--context", "prod"], ["--context", "prod", command]):
        words = [*words, *needed]
        with pytest.raises(UsageError, match="fleet of this home only"):
            build_app()(words, standalone_mode=False)


@pytest.mark.parametrize("name", ["local", "", "../up", "a b", "x" * 64, "-x"])
def test_names_that_could_mean_something_else_are_not_added(name) -> None:
    with pytest.raises(UsageError):
        contexts.check_name(name)


def test_tab_offers_contexts_and_never_an_error(home) -> None:
    assert complete_context("") == ["local", "prod"]
    assert complete_context("p") == ["prod"]
    assert complete_model("") == []  # no fleet runs here
    contexts.file_of(home).write_text("{")
    assert complete_context("") == []


def test_a_bare_dry_run_is_the_servers() -> None:
    words = ["scale", "chat", "--dry-run", "-e", "4", "--", "--dry-run"]
    assert dry_run.spelt_out(words)[2] == "--dry-run=server"
    assert dry_run.spelt_out(words)[-1] == "--dry-run"
    assert dry_run.spelt_out(["--dry-run=client"]) == ["--dry-run=client"]
