"""The demo as a whole: a fleet of its own, a run that never scales, the same again with scaling,
the end.

The only file that wires the demo's parts. Whatever happens, the fleet is taken down and processes
that outlived it are counted.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import MoectlError, RefusedError
from ...core.paths import Home, processes_of_instance
from .. import exit_codes, specs
from ..client import ApiClient
from ..gateway_client import ChatOptions
from ..instance import Instance, read_token
from ..interrupts import interruptible, shielded
from ..local import UpOptions, bring_up
from ..teardown import tear_down
from .report import Evidence, Setting, build_report, is_good, summary_lines, to_text
from .residency import Residency
from .scenario import QUIET_S, Scenario
from .traffic import Target, Traffic
from .view import DemoView, open_view

MAX_TOKENS = 120  # answers of some seconds: long enough to live through a change
REFERENCE_DEADLINE_S = 120.0
DRAIN_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What `moectl demo` was asked for."""

    spec: str = specs.DEFAULT_SPEC
    conversations: int = 6
    seed: int = 7
    plot: Path | None = None
    output: str = "text"
    keep_logs: Path | None = None
    quiet_s: float = QUIET_S


def run_demo(options: DemoOptions) -> int:
    """Run it, print the report, and return the exit code: 1 when a promise was broken."""
    began = time.monotonic()
    model = _model_of(options.spec)
    if options.plot is not None:
        _check_plot(options.plot)
    evidence = Evidence()
    with interruptible(), _private_home(options) as home:
        view = open_view()
        with view:
            _play(home, options, model, evidence, view)
    evidence.total_s = time.monotonic() - began
    report = build_report(evidence, _setting(options))
    if options.plot is not None:
        from .plot import draw

        draw(evidence, report, options.plot)
    if options.output == "json":
        print(to_text(report))
    else:
        print("\n".join(summary_lines(report)))
    return exit_codes.OK if is_good(report) else exit_codes.ERROR


def _play(home: Home, options: DemoOptions, model: str, evidence: Evidence, view: DemoView) -> None:
    """Up, reference, the acts, down; evidence is filled as it comes."""
    instance: Instance | None = None
    try:
        view.stage("bring the fleet up")
        began = time.monotonic()
        up = UpOptions(spec=options.spec, api_port=0, gateway_port=0, etcd_port=0)
        instance = bring_up(home, up, view).instance
        evidence.startup_s = time.monotonic() - began
        with ApiClient(instance.api_url, read_token(home)) as client:
            _act(_Stage(home, instance, client, options, view), model, evidence)
    finally:
        with shielded():
            view.stage("take the fleet down")
            tear_down(home, keep_logs=True, report=view.part_ended)
            if instance is not None:
                evidence.leaked = len(processes_of_instance(instance.instance))


@dataclass(frozen=True, slots=True)
class _Stage:
    """Where the demo plays: a running fleet, how to reach it, and where it is shown."""

    home: Home
    instance: Instance
    client: ApiClient
    options: DemoOptions
    view: DemoView


def _act(stage: _Stage, model: str, evidence: Evidence) -> None:
    """Everything that happens while the fleet is up."""
    instance, options, view = stage.instance, stage.options, stage.view
    target = Target(instance.gateway_url, read_token(stage.home), model)
    traffic = Traffic(target, _chat_options(options))
    view.follow(traffic)
    view.stage("talk without scaling, to know what every answer must be")
    reference = traffic.play_once(REFERENCE_DEADLINE_S)
    broken = [trace.error for trace in reference if not trace.is_ok]
    if broken or len(reference) < options.conversations:
        raise MoectlError(
            f"the run without scaling failed: {broken[0] if broken else 'answers took too long'}",
            next_step="`moectl demo --keep-logs DIR` keeps the logs of all parts",
        )
    evidence.reference = {(t.conversation, t.turn): t.text for t in reference}
    sockets = [stage.home.node(str(node["name"])).hmm_socket for node in instance.nodes]
    residency = Residency(sockets, model)
    residency.start()
    traffic.start()
    try:
        scenario = Scenario(
            stage.client, model, instance.instance, view.stage, view.phase, options.quiet_s
        )
        evidence.scales = scenario.scales()
        evidence.kill = scenario.kill_one()
        scenario.rest()
    finally:
        traffic.stop(DRAIN_DEADLINE_S)
        residency.stop()
        evidence.traces, evidence.sent = list(traffic.traces), traffic.sent
        evidence.samples = residency.samples


def _chat_options(options: DemoOptions) -> list[ChatOptions]:
    """Greedy and sampled in turn: both must come out the same whatever happens to the fleet."""
    greedy = ChatOptions(max_tokens=MAX_TOKENS)
    return [
        ChatOptions(max_tokens=MAX_TOKENS, temperature=0.6, top_p=0.9, seed=options.seed + index)
        if index % 2
        else greedy
        for index in range(options.conversations)
    ]


def _model_of(spec: str) -> str:
    """The name of the first model of a spec."""
    for document in specs.read_documents(spec):
        if document.kind == "Model":
            return document.name
    raise RefusedError(f"{spec} declares no model", next_step="add a document of kind Model")


@contextmanager
def _private_home(options: DemoOptions) -> Iterator[Home]:
    """A home of its own, removed at the end; the logs stay when something went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="moectl-demo-"))
    is_kept = False
    try:
        yield Home(folder)
    except MoectlError:  # not on Ctrl-C: nobody reads the logs of what they stopped themselves
        is_kept = options.keep_logs is None and any(folder.rglob("*.log"))
        raise
    finally:
        _save_logs(folder, options.keep_logs)
        if is_kept:
            print(f"the logs of the demo's fleet are kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _save_logs(folder: Path, target: Path | None) -> None:
    if target is None:
        return
    for log in folder.rglob("*.log"):
        place = target / log.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(log, place)


def _check_plot(path: Path) -> None:
    """Refuse before three minutes of work what cannot be written after them."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise RefusedError(
            f"--plot {path}: not a picture", next_step="end it in .png, .svg or .pdf"
        )
    if not path.absolute().parent.is_dir():
        raise RefusedError(f"--plot {path}: its folder does not exist")


def _setting(options: DemoOptions) -> Setting:
    cores = len(os.sched_getaffinity(0))
    return Setting(
        commit=_commit(),
        device=f"cpu x{cores}",
        seed=options.seed,
        command="moectl " + " ".join(sys.argv[1:]),
        cores=cores,
    )


def _commit() -> str:
    """The commit of the source tree that runs, or "unknown" outside of a clone."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip()
