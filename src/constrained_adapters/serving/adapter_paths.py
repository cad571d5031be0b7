"""Names and folders of adapters that a client asks to load."""

from __future__ import annotations

from pathlib import Path

from constrained_adapters.errors import ConfigError
from constrained_adapters.model.adapter_set import adapter_name_of
from constrained_adapters.serving.failures import RequestError, UnknownModelError


def adapter_name(name: str) -> str:
    """Return ``name`` as it is served.

    Raises:
        RequestError: It cannot be a domain's name, such as one with a slash.
    """
    try:
        return adapter_name_of(name)
    except ConfigError as error:
        raise RequestError(error.what, got=error.got, expected=error.expected, param="lora_name") from None


def adapter_folder(path: str, root: Path) -> Path:
    """Return the folder that ``path`` means: inside of ``root``, to which a relative path belongs.

    Raises:
        RequestError: It lies outside of it.
        UnknownModelError: It is no folder.
    """
    try:
        folder = (root / path).resolve()
        inside = folder.is_relative_to(root.resolve())
        there = inside and folder.is_dir()
    except (OSError, ValueError):  # a name that no file system takes
        inside, there = True, False
    if not inside:
        raise RequestError(
            "the path lies outside of the folder from which adapters may be loaded",
            got=path[:200],
            expected="a path inside of it",
            param="lora_path",
        )
    if not there:
        raise UnknownModelError("no such folder", got=path[:200], param="lora_path", code="not_found")
    return folder
