"""Read what a domain's settings name: a file, a folder of files, or a hub data set."""

from __future__ import annotations

import re
from pathlib import Path

from constrained_adapters.data.files import READERS, read_file
from constrained_adapters.data.records import Record, nearest_path, shorten
from constrained_adapters.errors import ConfigError, DataError, MissingExtraError

SPLIT_STEMS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
"""Names of splits: of files in a folder (up to the first ``.``, ``-`` or ``_``), and of hub splits."""


Splits = dict[str, list[Record]]


def read_source(source: str, subset: str | None = None) -> tuple[Splits, list[str]]:
    """Read a file, a folder of files or a hub data set.

    Args:
        source: A path, or a hub name such as ``owner/name`` where no such path exists.
        subset: Configuration name of a hub data set.

    Returns:
        The records under ``"all"``, or under ``"train"``, ``"validation"`` and ``"test"`` where the
        source names its splits; and sentences on what was left out.

    Raises:
        DataError: The source is missing, empty, broken or not readable.
        ConfigError: ``subset`` is given for a path, where it has no effect.
        MissingExtraError: pyarrow or datasets is needed and not installed.
    """
    path = Path(source).expanduser()
    if not path.exists() and _may_be_hub_name(source):
        return _read_hub(source, subset)
    if subset is not None:
        raise ConfigError(
            "'subset' has no effect here",
            got=f"subset = {subset!r} for {source}",
            expected="a hub data set such as 'owner/name', or no 'subset'",
        )
    if path.is_dir():
        return _read_folder(path)
    return {"all": read_file(path)}, []


def _read_folder(folder: Path) -> tuple[Splits, list[str]]:
    visible = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    files = [path for path in visible if path.suffix.lower() in READERS]
    ignored = [path.name for path in visible if path not in files]
    if not files:
        raise DataError(
            "the folder holds no data file",
            got=f"{folder} with {shorten(', '.join(ignored)) or 'nothing in it'}",
            expected=f"files that end in {', '.join(sorted(READERS))}",
        )
    notes = (
        [f"{len(ignored)} other files in {folder} were not read: {shorten(', '.join(ignored))}."]
        if ignored
        else []
    )
    places = [(path, _split_of(re.split(r"[.\-_]", path.name)[0])) for path in files]
    if all(split for _, split in places) and any(split == "train" for _, split in places):
        named: Splits = {}
        for path, split in places:
            named.setdefault(split or "train", []).extend(read_file(path))
        return named, [
            *notes,
            f"The files of {folder} name their splits: {', '.join(p.name for p in files)}.",
        ]
    return {"all": [record for path in files for record in read_file(path)]}, notes


def _split_of(stem: str) -> str | None:
    return next((split for split, stems in SPLIT_STEMS.items() if stem.lower() in stems), None)


def _may_be_hub_name(source: str) -> bool:
    """Whether a name that is no path here is worth a look-up; a misspelt path is not."""
    owner, _, name = source.rpartition("/")
    if not re.fullmatch(r"([A-Za-z0-9][\w.\-]*/)?[A-Za-z0-9][\w.\-]*", source):
        return False
    if Path(name).suffix.lower() in READERS or (owner and Path(owner).exists()):
        return False
    return bool(owner) or (not Path(name).suffix and nearest_path(Path(name)) is None)


def _read_hub(name: str, subset: str | None) -> tuple[Splits, list[str]]:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError.of(
            "datasets", "data", f"to load {name!r}, which is no file here, from a hub"
        ) from None
    try:
        loaded = datasets.load_dataset(name, subset)
    except Exception as error:  # the package raises OSError, ValueError, RuntimeError and its own, by cause
        raise DataError(
            f"no such file or folder, and no data set {name!r} could be loaded from a hub",
            got=f"{type(error).__name__}: {shorten(str(error), 160)}",
            expected="a path that exists, or a hub data set that can be reached or is in the cache",
            hint=nearest_path(Path(name))
            or "check the spelling and the connection, or download the files first",
        ) from None
    splits: Splits = {}
    for split, rows in loaded.items():
        place = f"{name}[{split}]"
        splits[_split_of(str(split)) or str(split)] = [
            Record(dict(row), place, i) for i, row in enumerate(rows, 1)
        ]
    if "train" in splits:
        kept = {split: records for split, records in splits.items() if split in SPLIT_STEMS}
        left = [split for split in splits if split not in kept]
        return kept, ([f"Splits of {name} that were not read: {', '.join(left)}."] if left else [])
    return {"all": [record for records in splits.values() for record in records]}, []
