"""The page at ``/`` to try the server: one file, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi.responses import HTMLResponse


async def page_response() -> HTMLResponse:
    """The page, with a policy under which its own script and style alone may run."""
    html, policy = _page()
    return HTMLResponse(html, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})


@cache
def _page() -> tuple[str, str]:
    html = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    script, style = (_hash(re.search(rf"<{tag}>(.*?)</{tag}>", html, re.S)) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html, policy


def _hash(part: re.Match[str] | None) -> str:
    assert part is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(part[1].encode()).digest()).decode()}'"
