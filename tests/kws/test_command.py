"""How a command ends."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from kws.command import CLOSED_PIPE

COMMAND = """
    import errno, os, sys, time
    from kws.command import CommandFailed, as_command
    with as_command():
        print("result")
        print("remark", file=sys.stderr)
        if len(sys.argv) > 1:
            exec(sys.argv[1])
    """


def command(code: str = "", redirect: str = "", **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs a command under a shell that redirects its output."""
    arguments = ["bash", "-c", f'"$0" "$@" {redirect}', sys.executable, "-c", textwrap.dedent(COMMAND), code]
    environment = os.environ | {"PYTHONUNBUFFERED": ""} | variables
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize(
    ("code", "status", "line"),
    [
        ("raise ValueError('epochs must be positive, got 0')", 2, "error: epochs must be positive, got 0"),
        ("open('/absent')", 2, "error: [Errno 2] No such file or directory: '/absent'"),
        (
            "raise OSError(errno.ENOSPC, 'No space left on device', '/data/x')",
            2,
            "error: [Errno 28] No space left on device: '/data/x'; "
            "free some space and start again: what is done is kept",
        ),
        ("raise CommandFailed('train failed')", 1, "error: train failed"),
        (
            "raise MemoryError",
            2,
            "error: this takes more memory than there is: use a smaller --batch-size, fewer "
            "processes or a larger memory limit",
        ),
        ("raise KeyboardInterrupt", 130, "stopped; run the same command again to resume"),
        ("sys.exit(3)", 3, "remark"),
        ("", 0, "remark"),
    ],
)
def test_command_ends_with_a_status_and_a_line(code: str, status: int, line: str) -> None:
    done = command(code)
    assert done.returncode == status
    assert done.stderr.splitlines()[-1] == line
    assert done.stdout == "result\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("redirect", "status", "said"),
    [
        (
            "> /dev/full",
            2,
            "remark\nerror: [Errno 28] No space left on device; free some space and start again: what "
            "is done is kept\n",
        ),
        (">&-", 0, "remark\n"),
        ("2> /dev/full", 0, ""),
        ("2>&-", 0, ""),
    ],
)
def test_full_or_closed_output_causes_no_traceback(redirect: str, status: int, said: str) -> None:
    done = command("", redirect)
    assert (done.returncode, done.stderr) == (status, said)


def test_every_character_passes_in_a_locale_of_ascii() -> None:
    done = command(r"print('\u25b6 w\xf6rd')", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="")
    assert (done.returncode, done.stdout) == (0, "result\n▶ wörd\n")


def test_name_that_is_no_text_is_refused_with_the_remedy() -> None:
    done = command("('a' + chr(0xdcff)).encode()")
    assert done.returncode == 2
    assert r"names and texts must be UTF-8, got 'a\udcff'" in done.stderr


def test_thread_that_a_full_disk_ended_says_so_in_a_line() -> None:
    code = """
import threading
def write():
    with open("/dev/full", "w") as file:
        file.write("x")
thread = threading.Thread(target=write)
thread.start()
thread.join()
"""
    done = command(code)
    assert (done.returncode, done.stderr) == (0, "remark\nerror: [Errno 28] No space left on device\n")


def test_output_that_nobody_reads_any_more_ends_the_command_without_a_word() -> None:
    done = command("while True: print('more', flush=True)", "| head -1; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stdout, done.stderr) == (CLOSED_PIPE, "result\n", "remark\n")


def test_log_messages_that_cannot_be_written_do_not_end_the_command() -> None:
    code = "for _ in range(5000): print('x' * 100, file=sys.stderr)\nprint('done')"
    done = command(code, "2> >(head -1 > /dev/null)")
    assert (done.returncode, done.stdout) == (0, "result\ndone\n")


def test_ctrl_c_of_a_command_at_work_is_a_line() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(COMMAND), "print('ready', flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while process.stdout.readline() != "ready\n":
        pass
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (130, "stopped; run the same command again to resume")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, to be a user whom no passwd file lists")
def test_user_without_a_name_and_a_home_gets_both(tmp_path: Path) -> None:
    code = """
        import getpass, os
        from pathlib import Path
        from kws.command import settle_user
        settle_user()
        print(os.getuid(), getpass.getuser(), Path.home())
        """
    as_nobody = ["unshare", "--user", "--map-user=12345", "--map-group=0"]
    if subprocess.run([*as_nobody, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody be another user")
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    done = subprocess.run(
        [*as_nobody, sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["12345", "user12345", "/tmp"]
