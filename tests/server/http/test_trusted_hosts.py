"""TrustedHosts: which host names are accepted."""

import httpx
import pytest

from caravan.server.http.host_names import allowed_hosts, is_loopback
from caravan.server.http.trusted_hosts import TrustedHosts
from tests.support.hello_app import hello

MINE = ("localhost", "127.0.0.1", "[::1]", "*.example.org")


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]", "[::1]:8000", "a.example.org", "b.a.example.org:80"],
)
async def test_allowed_hosts_are_accepted(host: str) -> None:
    assert (await ask(host)).text == "hello"


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "localhost.evil.com",
        "evil-localhost",
        "example.org",
        "badexample.org",
        "",
        "[::1",
        "127.0.0.1@evil.com",
        "[::1]x",
    ],
)
async def test_threat_15_other_hosts_are_rejected(host: str) -> None:
    refused = await ask(host)
    assert refused.status_code == 421
    assert refused.json()["error"]["param"] == "host"


async def ask(host: str) -> httpx.Response:
    transport = httpx.ASGITransport(TrustedHosts(hello, hosts=MINE))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.get("/", headers={"host": host})


def test_on_loopback_the_default_is_the_loopback_names() -> None:
    assert allowed_hosts(None, "127.0.0.1") == ("localhost", "127.0.0.1", "[::1]")
    assert allowed_hosts(None, "0.0.0.0") is None
    assert allowed_hosts("a.b, c.d", "127.0.0.1") == ("a.b", "c.d")
    assert allowed_hosts("*", "127.0.0.1") is None


def test_loopback_addresses_are_recognized() -> None:
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.0.1", "example.org")] == [False] * 4
