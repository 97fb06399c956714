"""The frame of a command line: errors become one line and an exit status, never a traceback."""

import codecs
import contextlib
import errno
import io
import os
import pwd
import sys
import tempfile
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, TextIO, cast


class _Unfailing:
    """A text stream that ignores write errors, so that a closed pipe or a full disk behind it does not end the work."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes text if possible."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream if possible."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def unfailing(stream: TextIO | None) -> TextIO:
    """Returns a stream that writes to another, which the parent process may have closed, as far as that works."""
    return cast(TextIO, _Unfailing(stream or io.StringIO()))


class CommandFailed(Exception):
    """Raised if a command failed although its arguments were right; the message is shown to the user."""


CLOSED_PIPE = 141
"""Exit status if the reader of the output has gone: 128 + SIGPIPE, as in other programs."""


@contextlib.contextmanager
def as_command() -> Iterator[None]:
    """Runs the block as a command: turns its errors into one line on standard error and an exit status.

    The status is 1 for CommandFailed, 2 for an error of the user or of the machine, 130 for Ctrl-C, and 141 if the
    reader of the output has gone.

    Raises:
        SystemExit: the block raised one of these errors.
    """
    settle_user()
    settle_streams()
    quiet_threads()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = sys.stdout or io.StringIO(), unfailing(sys.stderr)
    status = 0
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # now, while a full disk can still be reported
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        ending = _ending(error)
        if ending is None:
            raise
        status, message = ending
        if message:
            print(message, file=sys.stderr)
    finally:
        sys.stderr.flush()
        for stream in (sys.stdout, before[1]):
            _forget_unwritten(stream)
        sys.stdout, sys.stderr = before
    if status:
        sys.exit(status)


def _ending(error: BaseException) -> tuple[int, str] | None:
    """Returns the exit status and the line for an error, or None for one that is ours."""
    match error:
        case CommandFailed():
            return 1, f"error: {error}"
        case KeyboardInterrupt():
            return 130, STOPPED
        case BrokenPipeError():
            return CLOSED_PIPE, ""
        case SystemExit():  # rich ends the program with status 1
            return (CLOSED_PIPE, "") if isinstance(error.__context__, BrokenPipeError) else None
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return 2, f"error: {error}; free some space and start again: what is done is kept"
        case UnicodeEncodeError():
            return 2, (
                f"error: names and texts must be UTF-8, got {error.object[:200]!a}: rename it, or use a UTF-8 locale "
                "(LC_ALL=C.UTF-8, without PYTHONUTF8=0)"
            )
        case OSError() | ValueError() | FloatingPointError():
            return 2, f"error: {error}"
        case MemoryError() | RuntimeError() if _is_of_memory(error):
            return 2, f"error: this takes more memory than there is: {ENOUGH_MEMORY}"
    return None


def _is_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(
        said in str(error) for said in ("can't allocate memory", "out of memory")
    )


ENOUGH_MEMORY = "use a smaller --batch-size, fewer processes or a larger memory limit"


STOPPED = "stopped; run the same command again to resume"


def _forget_unwritten(stream: TextIO | None) -> None:
    """Keeps Python from reporting at exit what it could not write."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def end_quietly() -> None:
    """Makes Ctrl-C outside of `as_command`, as while modules are imported, end this process without a traceback."""

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print(STOPPED, file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = say


def quiet_threads() -> None:
    """Reports an OSError in a thread, such as a full disk, in one line instead of a traceback.

    TensorBoard writes in a thread, and raises the error in the main thread as well at its next write.
    """

    def say(what: threading.ExceptHookArgs) -> None:
        if isinstance(what.exc_value, OSError):
            print(f"error: {what.exc_value}", file=sys.stderr)
        else:
            threading.__excepthook__(what)

    threading.excepthook = say


def settle_streams() -> None:
    """Makes standard output and error accept every character, whatever the locale.

    In the C locale Python uses UTF-8 unless that is disabled; then it uses ASCII, which is replaced by UTF-8 here. In
    locales with other encodings, characters that these lack become question marks.
    """
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if codecs.lookup(stream.encoding).name == "ascii":
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
        elif codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="replace")


def settle_user() -> None:
    """Sets USER and HOME for a user id without a passwd entry, as libraries ask for both.

    Kubernetes and OpenShift run containers with such user ids.
    """
    uid = os.getuid()
    try:
        pwd.getpwuid(uid)
    except KeyError:
        os.environ.setdefault("USER", f"user{uid}")
        os.environ.setdefault("HOME", tempfile.gettempdir())
    home = os.path.expanduser("~")
    if not os.access(home, os.W_OK):  # matplotlib writes its font cache there
        os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), f"matplotlib-{uid}"))
