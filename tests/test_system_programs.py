"""What `make test` says of programs that it does not install."""

from pathlib import Path

from tests.support.system_programs import PACKAGES, advice, missing_programs


def test_a_missing_program_is_named_with_its_package(tmp_path: Path) -> None:
    for name in PACKAGES.keys() - {"promtool"}:
        (tmp_path / name).touch(mode=0o755)
    missing = missing_programs({"PATH": str(tmp_path)})
    assert missing in (["promtool"], [])  # nothing, if it is in /usr/sbin
    assert advice(["promtool"]).endswith("apt-get install prometheus")
    (tmp_path / "promtool").touch(mode=0o755)
    assert missing_programs({"PATH": str(tmp_path)}) == []
