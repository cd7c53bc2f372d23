"""The start and the end of a server of replicas, which the test plays."""

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest

from caravan.server import serve
from caravan.server.engine.process import EngineStartFailed
from caravan.server.replicas.replica_set import ReplicaSet
from caravan.server.serve import address_of, bind, run_replicas
from caravan.server.settings import load_settings
from tests.support.local_replica import FakeReplica


class FakeSource:
    """Adds replicas that the test plays."""

    def __init__(self, *replicas: FakeReplica) -> None:
        self._replicas = replicas
        self.is_stopped = False
        self.set = ReplicaSet()

    async def start(self, replicas: ReplicaSet) -> None:
        self.set = replicas
        for replica in self._replicas:
            replicas.add(replica)

    async def stop(self) -> None:
        self.is_stopped = True


async def test_a_server_follows_its_replicas_until_a_signal(
    tiny_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = load_settings(
        {"model": str(tiny_model_path), "served_model_name": "tiny", "engines": "ray://x", "max_queued_requests": 0}
    )
    source, listener = FakeSource(FakeReplica("one")), bind("127.0.0.1", 0)
    task = asyncio.create_task(run_replicas(settings, tiny_model_path, source, listener))
    async with httpx.AsyncClient(base_url=address_of(listener), timeout=20, trust_env=False) as http:
        shown = ""
        async with asyncio.timeout(60):
            while "\nReady" not in shown:
                assert not task.done()
                await asyncio.sleep(0.02)
                shown += capsys.readouterr().out
        assert (await http.get("/readyz")).status_code == 200
        source.set.add(FakeReplica("two"))
        async with asyncio.timeout(60):
            while 'caravan_replicas_connected{model_name="tiny"} 2.0' not in (await http.get("/metrics")).text:
                await asyncio.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(task, 60)
    assert source.is_stopped
    assert source.set.members == {}


async def test_a_server_without_a_replica_does_not_start(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "REPLICA_SECONDS", 0.01)
    settings = load_settings({"model": str(tiny_model_path), "engines": "ray://x"})
    source, listener = FakeSource(), bind("127.0.0.1", 0)
    with pytest.raises(EngineStartFailed, match="No replica has loaded the model within 0.01 seconds."):
        await run_replicas(settings, tiny_model_path, source, listener)
    assert source.is_stopped
    listener.close()
