"""Threat 20: a shutdown truncates no stream."""

from pathlib import Path

import pytest

from tests.campaign.shutdown import NUM_STREAMS, shutdown_campaign
from tests.support.extent import extent

pytestmark = pytest.mark.timing  # a client that is kept from sending for 0.2 s finds no server any more


def test_threat_20_sigterm_under_load_truncates_no_stream_and_leaves_no_process(tiny_model_path: Path) -> None:
    num_shutdowns = extent(4, 2)
    report = shutdown_campaign(tiny_model_path, num_shutdowns=num_shutdowns, seed=2)
    assert report.wrong == []
    assert report.exit_codes == [0] * num_shutdowns
    assert report.num_left_children == 0
    assert report.num_finished + report.num_ended + report.num_refused == num_shutdowns * NUM_STREAMS
    assert report.num_finished > 0
