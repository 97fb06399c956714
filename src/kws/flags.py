"""Makes command line flags from the fields of `kws.config`."""

import argparse
import dataclasses
import os
from typing import Any

from kws.config import MODEL_REGISTRY, field_docs


def add_flag(
    parser: "argparse.ArgumentParser | argparse._ArgumentGroup",
    config: type[Any],
    name: str,
    *,
    default: object = None,
    shown: str = "",
    required: bool = False,
) -> None:
    """Adds a flag for a field, whose help text is the field's docstring and default.

    Args:
        parser: the parser.
        config: a class of `kws.config`.
        name: name of the field.
        default: default of the flag; None: that of the field.
        shown: description of the default in the help; empty: its value.
        required: whether the flag must be given.
    """
    (value,) = (field.default for field in dataclasses.fields(config) if field.name == name)
    default = value if default is None else default
    flag, text = f"--{name.replace('_', '-')}", field_docs(config)[name].replace("%", "%%")
    if isinstance(value, bool):
        text = f"{text} (default: {'on' if default else 'off'})"
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        return
    note = "required" if required else f"default: {shown or default or repr(default)}"
    parser.add_argument(
        flag,
        type=type(value),
        metavar=name.upper(),
        help=f"{text} ({note})",
        **({"required": True} if required else {"default": default}),
    )


def add_registry(parser: argparse._ActionsContainer, purpose: str) -> None:
    """Adds the flag --model-registry, whose default is the environment variable.

    Args:
        parser: the parser.
        purpose: what the registry is told, for the help.
    """
    parser.add_argument(
        "--model-registry",
        default=os.environ.get(MODEL_REGISTRY, ""),
        metavar="ADDRESS",
        help=f"a Kubeflow Model Registry {purpose}, such as "
        f"http://model-registry-service.kubeflow.svc.cluster.local:8080 (default: the environment variable "
        f"{MODEL_REGISTRY}, or none)",
    )
