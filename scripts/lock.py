"""Write ``constraints.txt``: the versions that a clean install of the project takes today.

Run by ``make lock``. It makes a fresh environment in a temporary folder, installs torch at the pinned
version first (a later one would bring gigabytes of GPU libraries, and figures are compared at one version),
then the project with the extras that ``make`` installs, and writes down what is there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from install import EXTRAS, ROOT

TORCH = "torch==2.13.0"
HEADER = f"""\
# Every version that `make` installs (extras: {EXTRAS}), for Python 3.11 on Linux.
# Written by `make lock` from a clean install; edit pyproject.toml, not this file, then run it again.
# torch is pinned in scripts/lock.py; its build (CPU or GPU) is left to your package index.
"""


def main() -> None:
    """Install into a fresh environment and write the pins."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [str(Path(folder) / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", TORCH], check=True)
        subprocess.run([*pip, "install", "--quiet", TORCH, f"{ROOT}[{EXTRAS}]"], check=True)
        frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True).stdout
    pins = [re.sub(r"\+\w+$", "", line) for line in frozen.splitlines() if not line.startswith("constrained")]
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(pins) + "\n")
    print(f"constraints.txt: {len(pins)} versions")


if __name__ == "__main__":
    main()
