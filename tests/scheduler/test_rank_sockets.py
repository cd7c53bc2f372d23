"""Addresses, secrets and the groups of ranks on several hosts."""

import re
import socket
from pathlib import Path

import psutil
import pytest
import torch

from caravan.scheduler.rank_group import join_group, use_interface_of
from caravan.scheduler.rank_secret import read_secret
from caravan.scheduler.rank_socket import has_ended, host_and_port, listen, wait_for_end
from caravan.scheduler.rank_store import RankStore


@pytest.mark.parametrize(
    ("address", "parts"),
    [("10.0.0.1:7000", ("10.0.0.1", 7000)), ("node-1.lan:1", ("node-1.lan", 1)), ("[fd00::1]:7000", ("fd00::1", 7000))],
)
def test_an_address_is_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert host_and_port(address) == parts


@pytest.mark.parametrize("address", ["", "host", "host:", ":7000", "fd00::1:7000", "host:70000", "a b:1", "host:1\n"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"is not HOST:PORT"):
        host_and_port(address)


def test_a_socket_listens_and_the_end_of_its_connections_is_noticed() -> None:
    with listen("127.0.0.1:0") as listener, socket.create_connection(listener.getsockname()) as theirs:
        ours, _ = listener.accept()
        with ours:
            assert not has_ended(ours)
            theirs.sendall(b"unread")
            assert not has_ended(ours)
            theirs.close()
            wait_for_end([ours])
            assert has_ended(ours)


def test_a_secret_is_what_is_in_its_file_without_whitespace(tmp_path: Path) -> None:
    (path := tmp_path / "secret").write_text("  0123456789abcdef \n")
    assert read_secret(path) == b"0123456789abcdef"


def test_a_short_or_missing_secret_is_one_line(tmp_path: Path) -> None:
    (path := tmp_path / "secret").write_text("short\n")
    with pytest.raises(
        ValueError, match=rf"^The secret of ranks in {re.escape(str(path))} has 5 bytes; .* at least 16"
    ):
        read_secret(path)
    with pytest.raises(ValueError, match="^Cannot read the secret of ranks in .*: No such file or directory"):
        read_secret(tmp_path / "none")


def test_groups_use_the_interface_of_the_connection_unless_a_variable_says_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as one:
        environ = {"NCCL_SOCKET_IFNAME": "ib0"}
        use_interface_of(one, environ)
        assert environ == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "ib0"}
        monkeypatch.setattr(psutil, "net_if_addrs", dict)
        use_interface_of(one, environ := {})  # of an interface that is gone
        assert environ == {}


def test_a_group_gathers_through_a_store_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    exchange = join_group(RankStore(), 0, 1, torch.device("cpu"), 10.0)
    try:
        part = torch.arange(6.0).view(2, 3)
        assert torch.equal(exchange.gather(part, [3]), part)
    finally:
        exchange.close()
        torch.distributed.destroy_process_group()
