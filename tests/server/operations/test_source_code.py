"""GET /web/code/...: source files of the package, and nothing else."""

from pathlib import Path

import pytest

from tests.server.openai.api import open_api

ROOT = Path(__file__).parents[3]


async def test_a_source_file_is_served_as_text() -> None:
    async with open_api() as api:
        response = await api.http.get("/web/code/scheduler/block_pool.py")
    assert response.status_code == 200
    assert response.text == (ROOT / "scheduler" / "block_pool.py").read_text("utf-8")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["scheduler/snapshot.py", "scheduler%2F..%2Fscheduler%2Fscheduler.py", "..%2Fsettings.py", "%2Fetc%2Fpasswd", ""],
)
async def test_other_files_do_not_exist(path: str) -> None:
    async with open_api() as api:
        assert (await api.http.get(f"/web/code/{path}")).status_code == 404
