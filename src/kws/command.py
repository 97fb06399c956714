"""How a command ends: with a line for an error, never with a traceback."""

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
from typing import TextIO


class Unfailing(io.TextIOBase):
    """What is told to people on the way: a closed pipe or a full disk behind it must not end the work."""

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes text, if that can be."""
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Lets through what is held back, if that can be."""
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self.stream.flush()

    def isatty(self) -> bool:
        """Tells whether people read it as it comes."""
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        """Returns the file descriptor, for processes that write to the same."""
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Returns the encoding of the stream."""
        return getattr(self.stream, "encoding", None) or "utf-8"


class CommandFailed(Exception):
    """What a command was to do failed, through no fault of its arguments; the message is for people."""


CLOSED_PIPE = 141
"""Exit status when nobody reads the output any more: 128 + SIGPIPE, as of other programs."""


@contextlib.contextmanager
def as_command() -> Iterator[None]:
    """Ends the block, a whole command, as a command line should: with a line for an error, never with a traceback.

    Status 1 is CommandFailed, 2 an error of the user or of the machine, 130 Ctrl-C, 141 an output that nobody reads any
    more.

    Raises:
        SystemExit: always where the block does not end by itself.
    """
    settle_user()
    settle_streams()
    quiet_threads()
    before = sys.stdout, sys.stderr
    sys.stderr = Unfailing(sys.stderr)
    sys.stdout = sys.stdout or io.StringIO()  # closed by who started this
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # now, while it can still be told that the disk is full
    except CommandFailed as error:
        status = _end(1, str(error))
    except KeyboardInterrupt:
        status = _end(130, "")
    except BrokenPipeError:
        status = CLOSED_PIPE
    except MemoryError:
        status = _end(2, f"this takes more memory than there is: {ENOUGH_MEMORY}")
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        status = _end(2, f"{error}{'; free some and start again, what is done stays' if is_full else ''}")
    except UnicodeEncodeError as error:
        status = _end(2, f"names and texts must be UTF-8, got {error.object[:200]!a}: rename it, or take a locale "
                         "of UTF-8 (LC_ALL=C.UTF-8, and no PYTHONUTF8=0)")  # fmt: skip
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


ENOUGH_MEMORY = "a smaller --batch-size, fewer processes or a larger limit help"


def _end(status: int, message: str) -> int:
    line = f"error: {message}" if message else "stopped; run the same command again to resume"
    print(line, file=sys.stderr)
    return status


def _forget_unwritten(stream: TextIO) -> None:
    """Keeps Python from complaining, as it exits, of what it could not write."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def quiet_threads() -> None:
    """Lets a thread that a full disk or a closed pipe ended say so in a line.

    TensorBoard writes in a thread, and raises in the main one as well when that writes next.
    """

    def say(what: threading.ExceptHookArgs) -> None:
        if isinstance(what.exc_value, OSError):
            print(f"error: {what.exc_value}", file=sys.stderr)
        else:
            threading.__excepthook__(what)

    threading.excepthook = say


def settle_streams() -> None:
    """Lets every character pass, whatever the locale.

    Python takes the locale C for UTF-8 unless told otherwise; told otherwise, it is ASCII, which UTF-8 is too. In a
    locale of another encoding there are question marks for what that does not have.
    """
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if codecs.lookup(stream.encoding).name == "ascii":
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
        elif codecs.lookup(stream.encoding).name != "utf-8":
            stream.reconfigure(errors="replace")


def settle_user() -> None:
    """Gives a user whom the system does not know a name and a home, as libraries ask for both.

    Kubernetes and OpenShift start containers as users that no passwd file lists.
    """
    uid = os.getuid()
    try:
        pwd.getpwuid(uid)
    except KeyError:
        os.environ.setdefault("USER", f"user{uid}")
        os.environ.setdefault("HOME", tempfile.gettempdir())
    home = os.path.expanduser("~")
    if not os.access(home, os.W_OK):  # where matplotlib keeps what it knows of fonts
        os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), f"matplotlib-{uid}"))
