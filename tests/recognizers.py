"""Types of fixtures."""

from collections.abc import Callable

from kws.bundle import Recognizer

MakeRecognizer = Callable[..., Recognizer]
