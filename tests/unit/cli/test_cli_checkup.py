"""What `doctor` concludes."""

import pytest

from moectl.cli.checkup import judge_etcd


@pytest.mark.parametrize(
    "version,outcome",
    [("3.5.1", "warn"), ("3.5.5", "warn"), ("3.5.6", "ok"), ("3.6.0", "ok"), ("soon", "warn")],
)
def test_old_etcd_servers_are_warned_of(version: str, outcome: str) -> None:
    check = judge_etcd(f"etcd Version: {version}\nGit SHA: x\n", "/usr/bin/etcd")
    assert check.outcome == outcome


def test_a_silent_etcd_is_no_crash() -> None:
    assert judge_etcd("", "/usr/bin/etcd").outcome == "warn"
