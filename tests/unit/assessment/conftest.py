"""The tiny run of the training tests, finished."""

from __future__ import annotations

from ..training.conftest import tiny_run  # noqa: F401  # a fixture
