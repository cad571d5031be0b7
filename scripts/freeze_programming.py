"""Freeze docstrings of the standard library into the package: the data of the domain ``programming``.

How to run, with the Python version that the file is frozen from::

    python3.11 scripts/freeze_programming.py

It writes ``src/constrained_adapters/data/frozen/programming.jsonl.gz``, the same bytes every time. The
docstrings are frozen because they differ between Python versions, and a benchmark's data must not.
They are part of Python's documentation: copyright Python Software Foundation, PSF License Version 2.
"""

from __future__ import annotations

import gzip
import importlib
import inspect
import json
import random
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

PYTHON = (3, 11)
TARGET = Path(__file__).parent.parent / "src/constrained_adapters/data/frozen/programming.jsonl.gz"
MAX_PER_MODULE = 76
MIN_WORDS, MAX_WORDS = 6, 70

# Module -> further modules whose members count as its own.
MODULES: dict[str, tuple[str, ...]] = {
    "ast": (),
    "asyncio": ("asyncio.base_events", "asyncio.events", "asyncio.streams", "asyncio.tasks", "asyncio.locks"),
    "collections": ("collections.abc",),
    "configparser": (),
    "datetime": (),
    "decimal": ("_pydecimal",),
    "email": (
        "email.message",
        "email.header",
        "email.headerregistry",
        "email.policy",
        "email.utils",
        "email.charset",
    ),
    "http": ("http.client", "http.server", "http.cookiejar", "http.cookies"),
    "inspect": (),
    "ipaddress": (),
    "logging": ("logging.handlers", "logging.config"),
    "mailbox": (),
    "math": (),
    "multiprocessing": ("multiprocessing.context", "multiprocessing.pool", "multiprocessing.managers"),
    "os": ("posixpath",),
    "pathlib": (),
    "shutil": (),
    "socket": (),
    "statistics": (),
    "tarfile": (),
    "tkinter": ("tkinter.ttk",),
    "turtle": (),
    "typing": (),
    "unittest": ("unittest.case", "unittest.mock", "unittest.loader", "unittest.suite"),
    "xml": (
        "xml.dom.minidom",
        "xml.etree.ElementTree",
        "xml.sax.handler",
        "xml.sax.xmlreader",
        "xml.sax.saxutils",
    ),
}


def members(module: str) -> Iterator[tuple[str, str]]:
    """Yield name and docstring of each function, class and method that a module defines."""
    namespace = importlib.import_module(module)
    for name, value in sorted(vars(namespace).items()):
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if getattr(value, "__module__", module) not in (
            module,
            module.split(".", maxsplit=1)[0],
            f"_{module}",
            None,
        ):
            continue
        if name.startswith("_"):
            continue
        if value.__doc__:
            yield name, value.__doc__
        if inspect.isclass(value):
            for part, method in sorted(vars(value).items()):
                document = getattr(method, "__doc__", None)
                documented = inspect.isroutine(method) or isinstance(
                    method, property | classmethod | staticmethod
                )
                if documented and document and not part.startswith("_"):
                    yield part, document


def clean(document: str) -> str:
    """Return the description: the first paragraphs without signatures, doctests and lists of arguments."""
    kept: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(document)):
        text = " ".join(paragraph.split())
        if ">>>" in text or text.endswith(" --"):
            break
        if re.match(r"^[\w.]+\([^)]*\)(\s*->.*)?$", text):
            continue
        text = re.sub(r"^[\w.]+\([^)]*\)\s*(->\s*[\w\[\], ]+?)?\s*[-:–]+\s+", "", text)
        kept.append(text)
        if len(" ".join(kept).split()) >= MIN_WORDS * 3:
            break
    return " ".join(kept)


def is_prose(text: str) -> bool:
    """Whether a text is a description and not a grammar, a table or a drawing."""
    return (
        text.isascii()
        and " | " not in text
        and sum(char.isalpha() or char in " .,'" for char in text) > 0.85 * len(text)
    )


def rows() -> Iterator[dict[str, str]]:
    """Yield the chosen docstrings, module by module; one that two modules share belongs to neither."""
    found: dict[str, dict[str, str]] = {}
    owners: dict[str, set[str]] = {}
    for module, further in MODULES.items():
        found[module] = {}
        for part in (module, *further):
            for name, document in members(part):
                text = clean(document)
                if len(text.split()) >= MIN_WORDS and is_prose(text):
                    found[module].setdefault(text, name)
                    owners.setdefault(text.lower(), set()).add(module)
    for module, texts in found.items():
        own = [(text, name) for text, name in sorted(texts.items()) if owners[text.lower()] == {module}]
        random.Random(module).shuffle(own)
        for text, name in own[:MAX_PER_MODULE]:
            yield {"module": module, "name": name, "doc": " ".join(text.split()[:MAX_WORDS])}


def main() -> None:
    """Write the file."""
    if sys.version_info[:2] != PYTHON:
        raise SystemExit(f"run this with Python {PYTHON[0]}.{PYTHON[1]}, not {sys.version.split()[0]}")
    warnings.simplefilter("ignore")  # looking at a module's members meets its deprecated ones
    lines = [json.dumps(row, sort_keys=True) for row in rows()]
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    # mtime=0, so that the same rows give the same bytes.
    TARGET.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
    print(f"{len(lines)} docstrings, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
