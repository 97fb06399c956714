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
from typing import TextIO


class Unfailing(io.TextIOBase):
    """A text stream that ignores write errors, so that a closed pipe or a full disk behind it does not end the work."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes text if possible."""
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream if possible."""
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self.stream.flush()

    def isatty(self) -> bool:
        """Tells whether the stream is a terminal."""
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        """Returns the file descriptor, which child processes inherit."""
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Returns the encoding of the stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"


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
    sys.stderr = Unfailing(sys.stderr)
    sys.stdout = sys.stdout or io.StringIO()  # the parent process may have closed it
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # now, while a full disk can still be reported
    except CommandFailed as error:
        status = _end(1, str(error))
    except KeyboardInterrupt:
        status = _end(130, "")
    except BrokenPipeError:
        status = CLOSED_PIPE
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        status = CLOSED_PIPE  # rich ends the program with status 1
    except MemoryError:
        status = _end(2, f"this takes more memory than there is: {ENOUGH_MEMORY}")
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        status = _end(2, f"{error}{'; free some space and start again: what is done is kept' if is_full else ''}")
    except UnicodeEncodeError as error:
        status = _end(
            2,
            f"names and texts must be UTF-8, got {error.object[:200]!a}: rename it, or use a UTF-8 locale "
            "(LC_ALL=C.UTF-8, without PYTHONUTF8=0)",
        )
    except (ValueError, FloatingPointError) as error:
        status = _end(2, str(error))
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        status = _end(2, f"this takes more memory than there is: {ENOUGH_MEMORY}")
    else:
        return
    finally:
        sys.stderr.flush()
        _forget_unwritten(sys.stdout)
        if before[1] is not None:
            _forget_unwritten(before[1])
        sys.stdout, sys.stderr = before
    sys.exit(status)


ENOUGH_MEMORY = "use a smaller --batch-size, fewer processes or a larger memory limit"


STOPPED = "stopped; run the same command again to resume"


def _end(status: int, message: str) -> int:
    line = f"error: {message}" if message else STOPPED
    print(line, file=sys.stderr)
    return status


def _forget_unwritten(stream: TextIO) -> None:
    """Keeps Python from reporting at exit what it could not write."""
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
