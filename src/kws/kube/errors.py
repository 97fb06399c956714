"""What an error of an API means: those of the libraries, translated once, where they are called."""

import contextlib
import json
import re
from collections.abc import Iterator

from kws.text import one_line

MAX_WORDS = 300
"""Longest text, in characters, that is taken for the words of a server; a longer one is a page."""


class KubeError(Exception):
    """A call to an API failed."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.message = message
        """In the words of the API."""
        self.status = status
        """Of HTTP; 0: there was no answer."""

    def __str__(self) -> str:
        return ": ".join(filter(None, (f"status {self.status}" if self.status else "", self.message)))


class Unreachable(KubeError):
    """There is no answer, or one that may be another in a moment: overload, or an error of the server.

    This includes the operator's webhook: until it is up, every job is refused with status 500.
    """


class NotFound(KubeError):
    """There is no such object."""


class Conflict(KubeError):
    """There is an object of that name."""


class Refused(KubeError):
    """The API does not allow the call, or does not accept the object."""

    @property
    def by_quota(self) -> bool:
        """Whether a quota refuses for now: it is used up, or Kubernetes has not computed its usage yet.

        The latter lasts up to five minutes if the quota is older than the CustomResourceDefinition of what it counts.
        """
        return self.status == 403 and any(
            words in self.message for words in ("exceeded quota", "status unknown for quota")
        )


def error_of(status: int, reason: str, body: bytes | str | None) -> KubeError:
    """Returns the error for an answer.

    Args:
        status: of HTTP; 0 if there was no answer.
        reason: the words of the status line, which stand in where the answer has none of its own.
        body: the answer: JSON with a message, a line of text, or a page, which is left out.
    """
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        text = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        text = "" if text.lstrip().startswith("<") or len(text) > MAX_WORDS else text
    words = one_line(" ".join(text.split()) or reason or "")
    if status in (0, 408, 429) or status >= 500:
        return Unreachable(words, status)
    return {404: NotFound, 409: Conflict}.get(status, Refused)(words, status)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raises the errors of the Kubernetes client, and of the connections beneath it, as errors of this module."""
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        raise error_of(error.status or 0, str(error.reason), error.body) from error
    except (HTTPError, OSError) as error:
        raise no_answer(error) from error


def no_answer(error: Exception) -> Unreachable:
    """Returns the error for a connection that failed, with its cause alone.

    urllib3 puts the pool of connections in front of it, and an address in memory in front of that.
    """
    cause = str(getattr(error, "reason", None) or error)
    return Unreachable(one_line(re.sub(r"^(<[^>]*>|HTTPS?Connection\w*\([^)]*\)): ", "", cause)))
