"""Reads ``crma.yaml``: strict, with the file and the line in each error.

Two rules differ from what a plain YAML loader does. Scalars follow YAML 1.2, so that ``1e-3`` is
a number and ``no`` is a word, not ``False``. And values are not converted: ``steps: "30"`` is an
error, not 30.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from yaml.nodes import MappingNode, Node, SequenceNode

from constrained_adapters.config.base import Settings
from constrained_adapters.config.errors import Location, config_error
from constrained_adapters.config.run import RunConfig
from constrained_adapters.errors import ConfigError, nearest

AnySettings = TypeVar("AnySettings", bound=Settings)

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's own way to give a loader other rules


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {}  # noqa: RUF012 - see _Loader

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


# The core schema of YAML 1.2 (chapter 10.3.2), and merge keys.
_SCALARS = [
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
]
for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


def _int(loader: yaml.SafeLoader, node: Any) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 0) if text.startswith(("0x", "0o")) else int(text)


def _float(loader: yaml.SafeLoader, node: Any) -> float:
    return float(str(loader.construct_scalar(node)))


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def read_config(path: str | Path) -> RunConfig:
    """Read a ``crma.yaml``.

    Paths of data, of a base model's folder and of ``output`` are relative to the folder of the
    file, and absolute in what is returned; names of the hub and ``packaged:`` names stay.

    Raises:
        ConfigError: As :func:`read_settings`.
    """
    config, _ = read_settings(path, RunConfig, hint="crma init new.yaml")
    return with_absolute_paths(config, Path(path).resolve().parent)


def read_settings(
    path: str | Path, model: type[AnySettings], *, hint: str | None = None
) -> tuple[AnySettings, Callable[[Location], str]]:
    """Read a file of settings, strictly.

    Args:
        path: The file.
        model: What it holds.
        hint: What to try where the file is no list of settings.

    Returns:
        The settings as they are written, and a function from the location of a setting, such as
        ``("methods", 0)``, to its file and line.

    Raises:
        ConfigError: No such file, no UTF-8, no YAML, a key twice or unknown, a value of the wrong
            type or out of range: with file and line.
    """
    path = Path(path)
    node = _compose(_read_text(path), path)
    if not isinstance(node, MappingNode):
        got = f"{path}, line {_line(node)}" if node is not None else f"{path} is empty"
        raise ConfigError(
            f"a {path.name} is a list of settings", got=got, expected="lines such as 'seed: 0'", hint=hint
        )
    _refuse_duplicates(node, path, set())
    data = _construct(node, path)
    # A section whose lines are all comments is null in YAML; its defaults are meant.
    data = {key: value for key, value in data.items() if value is not None}

    def where(location: Location) -> str:
        return f"{path}, line {_line_of(node, location)}"

    if isinstance(data.get("output"), str):
        data["output"] = Path(data["output"])  # the one conversion: YAML has no paths
    try:
        return model.model_validate(data, strict=True), where
    except ValidationError as error:
        refused = config_error(error, model, where=where)
        raise refused from None


def dump_config(config: RunConfig) -> str:
    """Return the whole configuration, defaults included, as YAML that :func:`read_config` reads back."""
    data = config.model_dump(mode="json")
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def dump_value(value: Any) -> str:
    """Return one value as YAML on one line, quoted where it has to be.

    >>> dump_value("no"), dump_value("1e3"), dump_value(None), dump_value("数学")
    ('no', "'1e3'", 'null', '数学')
    """
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=True,
        allow_unicode=True,
        width=float("inf"),
        sort_keys=False,
    )
    return text.removesuffix("...\n").strip()


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        folder = path.parent
        others = sorted(p.name for p in folder.glob("*.y*ml")) if folder.is_dir() else []
        near = nearest(path.name, others)
        raise ConfigError(
            "there is no such file",
            got=str(path),
            expected="a crma.yaml",
            hint=str(folder / near) if near else f"crma init {path}",
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            "the file is not UTF-8 text",
            got=f"byte 0x{error.object[error.start]:02x} ({path}, line {line})",
            expected="UTF-8",
            hint="save it as UTF-8 in your editor",
        ) from None
    except OSError as error:
        raise ConfigError(
            "the file cannot be read", got=f"{path}: {error.strerror}", expected="a crma.yaml"
        ) from None


def _compose(text: str, path: Path) -> Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise _yaml_error(error, text, path) from None


def _construct(node: MappingNode, path: Path) -> dict[Any, Any]:
    loader = _Loader("")
    try:
        return loader.construct_document(node)  # type: ignore[no-any-return]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _yaml_error(error, "", path) from None
    finally:
        loader.dispose()


def _yaml_error(error: Exception, text: str, path: Path) -> ConfigError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    line, place = None, str(path)
    if mark is not None:
        line, place = mark.line, f"{path}, line {mark.line + 1}, column {mark.column + 1}"
    elif isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position)
        place = f"{path}, line {line + 1}"
    rows = text.splitlines()
    tab = line is not None and line < len(rows) and "\t" in rows[line]
    return ConfigError(
        "the file is not valid YAML",
        got=f"{problem} ({place})",
        expected="lines such as 'seed: 0', indented alike with spaces",
        hint="replace the tab by spaces" if tab else None,
    )


def _refuse_duplicates(node: Node, path: Path, seen: set[int]) -> None:
    if id(node) in seen:  # an alias: looked at already, and perhaps a circle
        return
    seen.add(id(node))
    if isinstance(node, SequenceNode):
        for child in node.value:
            _refuse_duplicates(child, path, seen)
    elif isinstance(node, MappingNode):
        first_lines: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in first_lines:
                raise ConfigError(
                    f"the setting {name!r} is there twice",
                    got=f"{path}, line {first_lines[name]} and line {_line(key)}",
                    expected="each setting once",
                    hint="remove one of the two lines",
                )
            first_lines[name] = _line(key)
            _refuse_duplicates(value, path, seen)


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _line_of(node: Node, location: Location) -> int:
    """Line of the setting at a location, or of the nearest thing around it that the file has."""
    line = _line(node)
    for part in location:
        if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = _line(node)
        elif isinstance(node, MappingNode):
            found = [(key, value) for key, value in node.value if key.value == part]
            if not found:
                break
            line, node = _line(found[0][0]), found[0][1]
    return line


def with_absolute_paths(config: RunConfig, folder: Path) -> RunConfig:
    """Make the paths in a configuration, which are relative to ``folder``, absolute, in place."""
    for domain in config.domains:
        for field in ("data", "train", "validation", "test"):
            setattr(domain, field, absolute_source(getattr(domain, field), folder))
    for method in config.methods:
        method.general_text = absolute_source(method.general_text, folder)
        method.golden_set = absolute_source(method.golden_set, folder)
        method.base_text = absolute_source(method.base_text, folder)
    if config.base.model != "embedded":
        config.base.model = absolute_source(config.base.model, folder) or ""
    config.evaluation.general = absolute_source(config.evaluation.general, folder)
    config.output = Path(os.path.normpath(folder / config.output.expanduser()))
    return config


def absolute_source(value: str | None, folder: Path) -> str | None:
    """Return a path relative to a folder as an absolute one; anything that is no path stays as it is.

    A path is what exists, what has the suffix of a data file, or what starts like one (``./``, ``~``).

    >>> absolute_source("packaged:law", Path("/data")), absolute_source("law.jsonl", Path("/data"))
    ('packaged:law', '/data/law.jsonl')
    """
    if value is None or value.startswith("packaged:"):
        return value
    candidate = folder / Path(value).expanduser()
    looks_like_path = value.startswith((".", "~")) or value.lower().endswith(DATA_SUFFIXES)
    return os.path.normpath(candidate) if looks_like_path or _exists(candidate) else value


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a path, or with a NUL in it
        return False
