"""Types of fixtures."""

from collections.abc import Callable

from kws.model.bundle import Recognizer

MakeRecognizer = Callable[..., Recognizer]
