"""What a person decides: which earlier version is champion again, and whether a candidate becomes it.

`kws` and `python -m pipeline` have the same commands, rollback, approve and reject, by these functions.
"""

import argparse
from pathlib import Path

from kws.model import versions
from kws.promote import registry
from kws.settings import add_registry

COMMANDS = {
    "rollback": "make an earlier version champion",
    "approve": "make the candidate champion",
    "reject": "refuse the candidate",
}
"""The commands, and what each does."""


def add_flags(parser: argparse.ArgumentParser, command: str) -> None:
    """Adds the flags of a command but for that of the data root."""
    which = "a folder of models/ (default: the previous champion)"
    if command != "rollback":
        which = "the candidate that is meant (default: whichever waits)"
    parser.add_argument("--version", default="", help=which)
    parser.add_argument("--reason", default="", help="the reason to record")
    parser.add_argument("--by", default="", help="who decided (default: user and machine)")
    if command == "approve":
        force = "approve it even if it is old, or there is another champion than it was compared with"
        parser.add_argument("--force", action="store_true", help=force)
    add_registry(parser, "in which to mark the champion" if command == "rollback" else "in which to mark it")


def carry_out(data_root: Path, command: str, options: argparse.Namespace) -> str:
    """Does what a person decided, marks it in the registry if there is one, and returns what to say of it.

    `options` are those of `add_flags`.

    Raises:
        ValueError: it cannot be done, see `versions.rollback` and `versions.decide`; all stays as it was.
    """
    who_and_why = {"by": options.by, "reason": options.reason}
    if command == "rollback":
        before, version = versions.rollback(data_root, options.version, **who_and_why)
        said = f"champion {version}, " + (f"before {before or 'none'}" if before != version else "as before")
    else:
        force = command == "approve" and options.force
        version = versions.decide(data_root, command == "approve", options.version, force=force, **who_and_why)
        said = f"{version}: {versions.states(data_root)[version]}"
    registry.try_register(options.model_registry, data_root, version)
    return said


def as_flags(options: argparse.Namespace) -> list[str]:
    """Returns the flags with which `kws` does in a pod what a person decided here."""
    given = {"version": options.version, "reason": options.reason, "by": options.by or versions.who()}
    return [f"--{name}={value}" for name, value in given.items()] + ["--force"] * getattr(options, "force", False)
