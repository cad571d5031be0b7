"""Install the project into ``.venv`` with the versions of ``constraints.txt``; do nothing if that is done.

``make`` calls this before every target, with the first Python of at least 3.11 that it finds. It needs
only the standard library. A stamp in the environment holds a digest of what was installed from, so that
changed requirements or a changed ``constraints.txt`` install again; a lock keeps two calls apart.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / ".installed"
EXTRAS = "dev,docs"


def digest() -> str:
    """Return what the stamp must say: what is installed, with which versions, and the place of the venv."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packaging = json.dumps([settings["project"], settings["build-system"], EXTRAS])
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    return hashlib.sha256("\n".join([str(ROOT), packaging, pins]).encode()).hexdigest()


def environment_works() -> bool:
    """Say whether the environment has a Python that starts and a pip."""
    python = VENV / "bin" / "python"
    if not python.exists():
        return False
    return (
        subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0
    )


def install() -> None:
    """Make the environment if there is none, and install the project with its extras."""
    if not environment_works():
        if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            sys.exit(
                f"{sys.executable} cannot make virtual environments\n"
                "  Expected: a Python with the modules venv and ensurepip\n"
                f"  Try:      apt-get install python{version}-venv, or make PYTHON=/path/to/python3"
            )
        print(f"making .venv with {sys.executable}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", VENV], check=True)
    print(f"installing constrained-adapters[{EXTRAS}] into .venv (once; a few minutes)", flush=True)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    pinned = ["-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, "install", "-qq", *pinned, "-e", f"{ROOT}[{EXTRAS}]"], check=True)


def main() -> None:
    """Install under the lock, unless the stamp says that it was done."""
    wanted = digest()
    with (ROOT / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if STAMP.exists() and STAMP.read_text() == wanted:
            return
        STAMP.unlink(missing_ok=True)
        try:
            install()
        except subprocess.CalledProcessError as error:
            sys.exit(f"the installation failed (exit code {error.returncode}); the lines above say why")
        STAMP.write_text(wanted)


if __name__ == "__main__":
    main()
