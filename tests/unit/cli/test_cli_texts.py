"""Tables, names, progress lines, event streams: what is printed and read line by line."""

import io
import json

import pytest
import yaml

from moectl.cli import listings, scaling, sse
from moectl.cli.fleet_view import fleet_from_plain
from moectl.cli.progress import PlainProgress
from moectl.cli.render import check_format, print_listing
from moectl.cli.tui.sample import sample_answer, sample_fleet
from moectl.core.errors import ProtocolError, UsageError


@pytest.mark.parametrize("kind", listings.KINDS)
@pytest.mark.parametrize("output", ["table", "json", "yaml", "name"])
def test_every_kind_prints_in_every_format(kind: str, output: str) -> None:
    out = io.StringIO()
    listing = listings.listing_of(sample_fleet(4, phase="prepare"), kind)
    print_listing(listing, output, out)
    text = out.getvalue()
    assert text
    if output == "json":
        assert len(json.loads(text)) == len(listing.rows)
    elif output == "yaml":
        assert len(yaml.safe_load(text)) == len(listing.rows)
    elif output == "name":
        assert all("/" in line for line in text.splitlines())
    else:
        assert len({len(line.rstrip()) > 0 for line in text.splitlines()}) == 1


def test_a_table_shows_what_is_going_on() -> None:
    out = io.StringIO()
    print_listing(listings.models(sample_fleet(4, phase="prepare")), "table", out)
    assert "2 -> 4" in out.getvalue()
    assert "scale 2 -> 4: prepare" in out.getvalue()


def test_one_thing_is_found_by_its_name_and_a_wrong_name_is_told() -> None:
    fleet = sample_fleet()
    assert len(listings.listing_of(fleet, "pages", "n1/d1").rows) == 1
    with pytest.raises(UsageError, match="n9"):
        listings.listing_of(fleet, "nodes", "n9")


@pytest.mark.parametrize("word,kind", [("no", "nodes"), ("model", "models"), ("hbm", "pages")])
def test_short_words_mean_kinds(word: str, kind: str) -> None:
    assert listings.kind_of(word) == kind
    with pytest.raises(UsageError):
        listings.kind_of("nothing")


def test_unknown_formats_are_usage_errors() -> None:
    with pytest.raises(UsageError):
        check_format("xml")


@pytest.mark.parametrize("text", ["4", "+2", "-1", "999999"])
def test_widths_and_changes_are_understood(text: str) -> None:
    assert scaling.check_width_text(text) == text


@pytest.mark.parametrize("text", ["", "0", "+0", "four", "1.5", "--2", "1e3", "４"])
def test_other_widths_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError):
        scaling.check_width_text(text)


def test_predicted_and_actual_stand_beside_each_other() -> None:
    text = "\n".join(scaling.summary_lines(sample_fleet(4).transitions[-1]))
    for piece in ("2 -> 4", "4.5MiB", "1.80 s", "8.0 ms", "6.2 ms", "2.00 s"):
        assert piece in text


def test_phases_are_told_once_each_in_order() -> None:
    out = io.StringIO()
    progress = PlainProgress(out, monotonic=lambda: 0.0)
    tell = scaling.tell_phases(progress)
    for phase in ("prepare", "prepare", "retire", "done"):
        tell(sample_fleet(4, phase=phase).transitions[-1])
    starts = [line.split()[1] for line in out.getvalue().splitlines() if line.startswith("…")]
    assert starts == ["PREPARE", "COMMIT", "RETIRE"]
    assert out.getvalue().count("✓") == 3


def test_plain_progress_says_every_change_once() -> None:
    out = io.StringIO()
    times = iter([1.0, 3.5])
    progress = PlainProgress(out, monotonic=lambda: next(times))
    progress.start("etcd")
    progress.start("etcd")
    progress.start("etcd", "waits")
    progress.end("etcd", "ok")
    assert out.getvalue().splitlines() == ["… etcd", "… etcd: waits", "✓ etcd (2.5 s)"]


def test_server_sent_events_are_read_with_comments_and_many_lines() -> None:
    stream = ": alive\n\nevent: fleet\ndata: {\ndata: }\n\ndata: plain\n\nevent: cut\ndata: off"
    assert list(sse.events(stream.split("\n"))) == [
        sse.Event("fleet", "{\n}"),
        sse.Event("message", "plain"),
    ]


def test_an_answer_in_another_form_is_a_protocol_error() -> None:
    answer = sample_answer(2, "done", 0)
    del answer["models"]
    with pytest.raises(ProtocolError, match="models"):
        fleet_from_plain(answer)


def test_readiness_is_of_the_newest_generation() -> None:
    answer = sample_answer(2, "done", 0)
    assert fleet_from_plain(answer).models[0].is_ready
    answer["models"][0]["generation"] = 3
    assert not fleet_from_plain(answer).models[0].is_ready
