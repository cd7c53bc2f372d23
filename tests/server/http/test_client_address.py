"""The logged client address: the peer's, or the one from a trusted proxy."""

from typing import Any

import pytest

from caravan.server.http.client_address import client_address, networks
from caravan.server.settings import WrongSettings, load_settings
from tests.server.openai.api import open_api

PROXIES = networks("10.0.0.0/8, 192.168.1.1, fd00::/8")


def address(peer: str | None, *headers: str, trusted: Any = PROXIES) -> str:
    lines = [(b"x-forwarded-for", header.encode("latin-1")) for header in headers]
    return client_address({"client": (peer, 1) if peer else None, "headers": lines}, trusted)


@pytest.mark.parametrize(
    ("peer", "headers", "expected"),
    [
        ("10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4"], "1.2.3.4"),  # the client wrote the first
        ("10.0.0.1", ["6.6.6.6", "1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["1.2.3.4, 10.0.0.7, 192.168.1.1"], "1.2.3.4"),
        ("10.0.0.1", ["10.0.0.9, 10.0.0.7"], "10.0.0.9"),
        ("10.0.0.1", ["1.2.3.4:5678"], "1.2.3.4"),
        ("10.0.0.1", ["[2001:db8::1]:5678"], "2001:db8::1"),
        ("10.0.0.1", ["2001:DB8:0::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        ("fd00::1", ["1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("127.0.0.1", ["1.2.3.4"], "127.0.0.1"),
        ("192.168.1.2", ["1.2.3.4"], "192.168.1.2"),
        (None, ["1.2.3.4"], "-"),
    ],
)
def test_the_client_is_the_last_address_outside_the_trusted_networks(
    peer: str, headers: list[str], expected: str
) -> None:
    assert address(peer, *headers) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "\x1b[31mred",
        "1.2.3.4\r\nline",
        "unknown",
        "_hidden",
        "fe80::1%<b>x</b>",
        "[fe80::1%25eth0]:80",
        "1.2.3.4:port",
        "1.2.3.4.5",
        "01.2.3.4",
        "256.1.1.1",
        "[1.2.3.4",
        "é",
        ",",
    ],
)
def test_threat_31_an_invalid_address_is_ignored_even_from_a_trusted_proxy(text: str) -> None:
    assert address("10.0.0.1", text) == "10.0.0.1"
    assert address("10.0.0.1", f"1.2.3.4, {text}") == "10.0.0.1"
    assert address("127.0.0.1", text) == "127.0.0.1"


def test_the_number_of_proxies_is_limited() -> None:
    assert address("10.0.0.1", "1.2.3.4, " + ", ".join(["10.0.0.2"] * 100)) == "10.0.0.2"


@pytest.mark.parametrize("trusted", ["", "127.0.0.1"])
async def test_threat_31_a_forwarded_address_is_logged_only_if_it_is_valid(trusted: str) -> None:
    clients: list[object] = []
    proxies = networks(trusted)
    async with open_api(
        trusted_proxies=proxies, on_response=lambda exchange: clients.append(exchange.log_fields()["client"])
    ) as api:
        for forwarded in ("1.2.3.4", "<b>\x1b[31m", "6.6.6.6, <b>"):
            await api.http.get(
                "/livez", headers={"x-forwarded-for": forwarded, "forwarded": "for=<b>", "x-real-ip": "<b>"}
            )
    assert clients == ["1.2.3.4" if trusted else "127.0.0.1", "127.0.0.1", "127.0.0.1"]


@pytest.mark.parametrize("wrong", ["proxy.example.org", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.1 10.0.0.2", "*"])
def test_an_invalid_list_of_proxies_is_an_error(wrong: str) -> None:
    with pytest.raises(WrongSettings, match="--trusted-proxies: it must be addresses or networks"):
        load_settings({"trusted_proxies": wrong})
    assert load_settings({"trusted_proxies": "10.0.0.0/8,::1"}).trusted_proxies == "10.0.0.0/8,::1"
