"""The command table: quick help, exit statuses, errors in words or JSON, and never a traceback."""

from __future__ import annotations

import errno
import json
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup

from app import cli, errors
from app.cli import COMMANDS, run
from app.errors import NOTHING_YET
from app.options import OPTIONS
from ldm.errors import Code, LdmError
from ldm.version import __version__
from tests.app.conftest import Ldm

HEAVY = ("torch", "numpy", "PIL", "diffusers", "transformers", "pipelines")


@pytest.mark.parametrize("argv", [["--help"], ["generate", "--help"], ["models", "show", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        f"import sys; from app.cli import run; s = run({argv!r}); print([m for m in {HEAVY!r} if m in sys.modules], s)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_help_takes_little_more_than_what_draws_it() -> None:
    """Processor time, start of Python included, beside that of the libraries which print it: a machine that is slow, or
    busy with other things, changes nothing. docs/results/startup.json has the seconds."""

    def seconds(program: str, *words: str) -> float:
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", program, *words], capture_output=True, check=True)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime

    ours, theirs = list[float](), list[float]()
    for _ in range(5):
        ours.append(seconds("from app.cli import main; main()", "--help"))
        theirs.append(seconds("import typer.main, rich.panel, rich.table, pydantic"))
    assert min(ours) <= 2.5 * min(theirs)


def test_the_version_is_told(ldm: Ldm) -> None:
    assert ldm("--version").out.strip() == f"ldm {__version__}"


def test_no_command_is_a_request_for_help(ldm: Ldm) -> None:
    done = ldm()
    assert done.status == 0
    assert all(entry.name in done.out for entry in COMMANDS)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["genrate"], "Did you mean generate?"),
        (["generate", "x", "--sead", "1"], "--seed"),
        (["generate", "x", "--steps"], "--steps"),
        (["generate", "x", "--negative", "--steps", "3"], "--negative needs a value"),
        (["generate", "x", "--seed", "--no-exact"], "--seed needs a value"),
        (["generate", "x", "--control", "--help"], "--control needs a value"),
        (["models", "pull", "a/b", "--revision", "-y"], "--revision needs a value"),
        (["models", "shw"], "show"),
        (["models"], "Missing command"),
        (["verify"], "FILE"),
        (["generate"], "PROMPT is missing"),
    ],
)
def test_misspelt_command_lines_are_answered(ldm: Ldm, argv: list[str], said: str) -> None:
    done = ldm(*argv)
    assert done.status == Code.USAGE
    assert said in done.err
    assert "fix: " in done.err
    assert done.out == ""


def test_errors_are_json_on_request(ldm: Ldm) -> None:
    done = ldm("generate", "x", "--steps", "0", "--json")
    assert done.status == Code.USAGE
    assert done.json["error"]["code"] == "usage"
    assert done.json["error"]["what"].startswith("--steps: '0'")
    assert done.err == ""


def test_a_bug_is_logged_and_not_shown(ldm: Ldm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*args: object) -> int:
        raise ZeroDivisionError("one by nothing")

    monkeypatch.setattr("app.generate.understand", broken)
    for number in (1, 2):
        done = ldm("generate", "x")
        assert done.status == Code.BUG
        assert f"outputs/ldm-error-000{number}.log" in done.err
        assert "Traceback" not in done.err + done.out
    log = (tmp_path / "outputs" / "ldm-error-0001.log").read_text()
    assert "Traceback" in log and "one by nothing" in log and '"generate"' in log


def test_a_bug_in_a_folder_without_rights_is_still_told(
    ldm: Ldm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "outputs").write_text("in the way")
    monkeypatch.setattr("app.generate.understand", lambda *args: 1 // 0)
    done = ldm("generate", "x")
    assert done.status == Code.BUG
    assert "Report it with the command" in done.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), Code.RESOURCE),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.png"), Code.FILE),
        (PermissionError(errno.EACCES, "Permission denied", "a.png"), Code.FILE),
        (MemoryError(), Code.RESOURCE),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), Code.RESOURCE),
    ],
)
def test_what_the_system_refuses_is_no_bug(error: Exception, code: Code) -> None:
    found = errors.as_ldm_error(error, [])
    assert found.code == code
    assert all(part.endswith(".") for part in (found.what, found.why, found.fix))


def test_text_that_drives_a_terminal_is_harmless() -> None:
    assert errors.printable("a\x1b[2Jb\u202ec\ud800\nd") == "a\ufffd[2Jb\ufffdc\ufffd\nd"


def test_keyboard_interrupts_end_quietly(ldm: Ldm, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.generate.understand", interrupted)
    done = ldm("generate", "x")
    assert (done.status, done.err.strip()) == (errors.INTERRUPTED, "stopped; nothing was made yet")
    assert ldm("generate", "x", "--json").json == {"pictures": [], "stopped": True}


def test_an_option_may_be_a_value_where_it_is_said_to_be() -> None:
    command = cli.load(next(entry for entry in COMMANDS if entry.name == "generate"))
    for args in (["--negative=--steps", "x"], ["--", "--negative", "--steps"], ["--negative", "-3", "--out", "-"]):
        cli.check_values(command, args)


@pytest.mark.parametrize(("as_json", "said"), [((), NOTHING_YET), (("--json",), '{"pictures": [], "stopped": true}')])
def test_sigterm_is_told_like_an_interrupt(as_json: tuple[str, ...], said: str) -> None:
    code = f"""
import os, signal, sys, app.cli, app.generate
def ended(*args):
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 143
    os.kill(os.getpid(), signal.SIGTERM)
app.generate.understand = ended
sys.argv = ["ldm", "generate", "x", *{as_json!r}]
app.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, (done.stdout + done.stderr).strip()) == (errors.TERMINATED, said)


def test_help_names_every_exit_status(ldm: Ldm) -> None:
    numbers = {int(found) for found in re.findall(r"[0-9]+", ldm("--help").out.partition("Exit status")[2])}
    assert numbers == {0, *map(int, Code), errors.INTERRUPTED, errors.TERMINATED}


def test_two_quick_interrupts_still_end_with_our_status() -> None:
    code = """
import os, signal, app.cli, app.errors
def twice(argv):
    os.kill(os.getpid(), signal.SIGINT)
def again(argv, status):
    os.kill(os.getpid(), signal.SIGINT)
    return 130
app.cli.load, app.errors.stopped = twice, again
app.cli.sys.argv = ["ldm", "doctor"]
app.cli.main()
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == errors.INTERRUPTED


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, errors.INTERRUPTED), (signal.SIGTERM, errors.TERMINATED)]
)
def test_a_failure_after_an_interrupt_that_a_library_swallowed_is_no_error_of_ours(number: int, status: int) -> None:
    code = f"""
import os, sys, app.cli, app.doctor
def swallowing(json):
    try:
        os.kill(os.getpid(), {int(number)})
    except BaseException:
        raise RecursionError("half imported") from None
app.doctor.run = swallowing
sys.argv = ["ldm", "doctor"]
app.cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (status, "stopped")


def test_before_the_program_is_there_an_interrupt_ends_it_without_a_word() -> None:
    code = """
import os, signal, sys
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "app.commands":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Slow())
from app.entry import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    code = """
import resource, sys
from app.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
sys.argv = ["ldm", "models", "list"]
main()
"""
    with (tmp_path / "out.txt").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == Code.RESOURCE
    assert "The output could not be written" in done.stderr


def test_every_exit_status_is_documented(root: Path) -> None:
    text = (root / "docs" / "cli.md").read_text()
    for code in Code:
        assert f"| {int(code)} | `{code.name.lower()}` |" in text
    assert f"| {errors.INTERRUPTED} |" in text and f"| {errors.TERMINATED} |" in text


def test_every_option_and_command_is_documented(root: Path) -> None:
    text = (root / "docs" / "cli.md").read_text()
    assert [o.flag for o in OPTIONS if f"`{o.flag.split('/')[0]}" not in text] == []
    assert [e.name for e in COMMANDS if f"ldm {e.name}" not in text] == []


def test_an_error_has_a_code_and_three_sentences() -> None:
    error = LdmError(Code.FILE, "a.png is not there.", "It was moved.", "Check the path.")
    assert errors.show(error, as_json=False) == 5


def test_completion_knows_commands_and_options() -> None:
    environment = {"_LDM_COMPLETE": "complete_bash", "COMP_WORDS": "ldm generate --gui", "COMP_CWORD": "2", "PATH": ""}
    code = "from app.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "--guidance" in done.stdout.split()


def test_running_twice_in_one_process_leaves_nothing_behind(ldm: Ldm) -> None:
    assert run(["--version"]) == run(["--version"]) == 0
    assert json.loads(ldm("generate", "--json").out)["error"]["exit"] == 2


@pytest.mark.parametrize("where", ["make_context", "invoke"])
def test_a_signal_is_told_wherever_it_comes(
    where: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """While words are understood, too: typer has an exit status of its own for that, and says nothing."""

    def interrupted(*given: object, **more: object) -> None:
        raise cli.TerminatedError

    monkeypatch.setattr(TyperGroup, where, interrupted)
    assert cli.run(["models", "list"]) == 143
    assert capfd.readouterr().err == "stopped\n"
