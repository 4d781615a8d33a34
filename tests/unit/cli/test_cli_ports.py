"""Ports of an embedded fleet: chosen, checked, named in errors."""

import socket

import pytest

from moectl.cli.ports import choose_ports, is_port_free
from moectl.core.errors import MoectlError, UsageError


def test_zeros_become_different_free_ports() -> None:
    ports = choose_ports(0, 0, 0).to_plain()
    assert len(set(ports.values())) == 4
    assert all(is_port_free(port) for port in ports.values())


def test_a_taken_port_is_named_with_its_flag() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        port = holder.getsockname()[1]
        assert not is_port_free(port)
        with pytest.raises(MoectlError) as caught:
            choose_ports(0, port, 0)
    assert caught.value.exit_code == 1
    assert str(port) in caught.value.message
    assert "--gateway-port" in caught.value.next_step


@pytest.mark.parametrize("api,gateway,etcd", [(8401, 8401, 0), (8403, 0, 8402), (70000, 0, 0)])
def test_a_port_twice_or_none_at_all_is_a_usage_error(api: int, gateway: int, etcd: int) -> None:
    with pytest.raises(UsageError):
        choose_ports(api, gateway, etcd)
