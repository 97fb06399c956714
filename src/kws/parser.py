"""The parser of a command line."""

import argparse
import sys
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """A parser that says when its help could not be written; argparse hides it if it is longer than a buffer."""

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)
