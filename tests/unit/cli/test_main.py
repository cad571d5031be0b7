"""How the command begins and how it ends: help, exit codes, the four lines, no traceback."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from constrained_adapters.cli.failures import set_debug, with_failures
from constrained_adapters.errors import DataError, TrainingError

HEAVY = ["torch", "transformers", "peft", "pydantic", "numpy", "yaml", "rich", "jinja2", "matplotlib"]


@pytest.fixture(autouse=True)
def no_debug():
    yield
    set_debug(False)


def test_help_is_light_and_quick():
    code = (
        "import sys, resource\n"
        "from constrained_adapters.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(used.ru_utime + used.ru_stime)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, heavy, seconds = done.stdout.splitlines()
    assert heavy == "[]"
    # Processor time: the clock would measure what else this machine does.
    assert float(seconds) <= 0.5


def test_every_command_has_its_help(crma):
    listed = crma("--help").output
    cut = [line for line in listed.splitlines() if line.endswith("...") and "[ARGS]" not in line]
    assert cut == []
    for name in ("init", "data", "assets", "run", "status", "report", "compare"):
        assert f"\n  {name} " in listed
        done = crma(name, "--help")
        assert done.exit_code == 0
        assert f"Usage: crma {name}" in done.output


def test_version(crma):
    assert crma("--version").output.startswith("constrained-adapters 0.")


def test_a_wrong_call_is_exit_code_2(crma):
    assert crma("runn").exit_code == 2
    assert crma("run").exit_code == 2
    assert crma("run", "crma.yaml", "--fast").exit_code == 2
    assert crma().exit_code == 2


def test_an_unknown_key_is_four_lines_and_exit_code_2(crma_process, run_file):
    with run_file.open("a") as file:
        file.write("training:\n  step: 3\n")
    done = crma_process("run", "crma.yaml")
    assert done.returncode == 2
    assert done.stdout == ""
    what, got, expected, hint = done.stderr.splitlines()
    assert what == "ConfigError: no setting named 'step'"
    assert got == "  Got:      training.step (crma.yaml, line 8)"
    assert expected.startswith("  Expected: batch_size, ")
    assert hint == "  Try:      steps"


def test_a_missing_file_is_exit_code_2(crma_process):
    done = crma_process("run", "crma.yaml")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "ConfigError: there is no such file")
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback_before_and_after_the_command(crma_process):
    for arguments in (["--debug", "run", "x.yaml"], ["run", "x.yaml", "--debug"]):
        done = crma_process(*arguments)
        assert done.returncode == 2
        assert "Traceback (most recent call last)" in done.stderr
        assert "ConfigError: there is no such file" in done.stderr.splitlines()


def failing(error: BaseException):
    def run() -> None:
        raise error

    return with_failures(run)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("no examples", got="a.csv"), 2, "DataError: no examples\n  Got:      a.csv\n"),
        (TrainingError("loss is NaN"), 1, "TrainingError: loss is NaN\n"),
        (KeyboardInterrupt(), 1, "\nstopped; nothing is lost: run the same command again to go on\n"),
        (
            ValueError("odd\nlong"),
            1,
            "unexpected ValueError: odd\n  Try:      run again with --debug to see where\n",
        ),
        (KeyError(), 1, "unexpected KeyError\n  Try:      run again with --debug to see where\n"),
        (
            PermissionError(errno.EACCES, "denied", "/x"),
            1,
            "WorkspaceError: permission denied\n  Got:      /x\n",
        ),
    ],
)
def test_what_a_command_raises_becomes_lines_and_a_code(capsys, error, code, message):
    import typer

    with pytest.raises(typer.Exit) as caught:
        failing(error)()
    assert caught.value.exit_code == code
    assert capsys.readouterr().err == message


def test_a_full_disk_is_a_workspace_error(capsys, tmp_path):
    import typer

    with pytest.raises(typer.Exit) as caught:
        failing(OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x")))()
    assert caught.value.exit_code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "WorkspaceError: no space left on the disk"
    assert f"MB free at {tmp_path / 'x'}" in lines[1]
    assert "goes on where it stopped" in lines[2]


def test_debug_shows_where_the_unexpected_happened(capsys):
    import typer

    set_debug(True)
    with pytest.raises(typer.Exit):
        failing(ValueError("odd"))()
    shown = capsys.readouterr().err
    assert "raise error\nValueError: odd\n" in shown
    assert "--debug" not in shown


SLOW_RUN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
import sys, time, types
run = types.ModuleType("constrained_adapters.training.run")
def run_config(config, *, observer, fresh=False):
    observer.message("begun")
    time.sleep(60)
run.run_config = run_config
sys.modules["constrained_adapters.training"] = types.ModuleType("constrained_adapters.training")
sys.modules["constrained_adapters.training.run"] = run
from constrained_adapters.cli.main import main
main()
"""


def test_control_c_is_one_calm_line(run_file):
    with subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, "run", str(run_file)], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=30) == 1
    assert rest == "\nstopped; nothing is lost: run the same command again to go on\n"


def test_a_closed_pipe_is_no_error(tmp_path):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "constrained_adapters.cli", "assets", "--list"],
            stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60, check=False, cwd=tmp_path,
        )  # fmt: skip
    assert done.stderr == ""


def test_names_in_any_script_pass_an_ascii_terminal(crma_process, run_file, tmp_path):
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    (folder := tmp_path / "out").mkdir()
    (folder / "crma.yaml").write_bytes(run_file.read_bytes())
    done = crma_process("status", "out", env=ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 of 2" in done.stdout


def test_warnings_are_one_line(capsys):
    import warnings

    from constrained_adapters.cli import main

    before = time.monotonic()
    main._print_warning(UserWarning("strength is low"), UserWarning, "file.py", 3)
    main._print_warning(FutureWarning("old"), FutureWarning, "file.py", 3)
    assert capsys.readouterr().err == "Warning: strength is low\nFutureWarning: old\n"
    assert warnings.showwarning is not main._print_warning
    assert time.monotonic() - before < 10
