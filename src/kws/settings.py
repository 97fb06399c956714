"""Settings: frozen dataclasses whose fields say which values they accept, and become checks, flags and tables.

From a field such as `epochs: int = number(30, above=0)` with a docstring under it follow the check of a value and the
words of its error, the flag `--epochs` with its help, the entry in config.json, and `--set train.epochs=5`.
"""

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import math
import os
import textwrap
import types
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, get_args, get_origin

MODEL_REGISTRY = "KWS_MODEL_REGISTRY"
"""Environment variable with the address of a Kubeflow Model Registry; if it is not set, nothing is registered."""

Number = TypeVar("Number", int, float, int | None, float | None)


def require(condition: bool, name: str, rule: str, value: object) -> None:
    """Raises ValueError "{name} must {rule}, got {value}" unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} must {rule}, got {value!r}")


def number(
    default: Number,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Number:
    """Returns a dataclass field for a number, with the limits that a value must keep."""
    limits = {"above": above, "at_least": at_least, "at_most": at_most, "below": below}
    return field(default=default, metadata={"limits": limits})


def choice(default: str, *others: str) -> str:
    """Returns a dataclass field for one of some texts, the first of which is the default."""
    return field(default=default, metadata={"choices": (default, *others)})


def _check_limits(name: str, value: float, limits: Mapping[str, float | None]) -> None:
    above, at_least, at_most, below = (limits[key] for key in ("above", "at_least", "at_most", "below"))
    fits = (
        (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
        and (below is None or value < below)
    )
    lowest = "positive" if above == 0 else f"above {above:g}" if above is not None else None
    if at_least is not None:
        lowest = f"between {at_least:g} and {at_most:g}" if at_most is not None else f"at least {at_least:g}"
    elif at_most is not None:
        lowest = f"{lowest} and at most {at_most:g}" if lowest else f"at most {at_most:g}"
    if below is not None:
        lowest = f"{lowest} and less than {below:g}" if lowest else f"less than {below:g}"
    require(fits, name, f"be {lowest}", value)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings: checks the type, the limits and the choices of every field."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: a value has another type than its field, or is out of range.
        """
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if value is None and types.NoneType in get_args(one.type):
                continue
            require(
                _is_of(value, one.type), one.name, f"be of the type {getattr(one.type, '__name__', one.type)}", value
            )
            if choices := one.metadata.get("choices"):
                require(value in choices, one.name, f"be {', '.join(choices[:-1])} or {choices[-1]}", value)
            if limits := one.metadata.get("limits"):
                _check_limits(one.name, value, limits)
            if isinstance(value, float):
                require(math.isfinite(value), one.name, "be finite", value)


def _is_of(value: object, kind: Any) -> bool:
    """Tells whether a value has the type of a field; an int counts as a float."""
    if isinstance(kind, types.UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    origin, kinds = get_origin(kind), get_args(kind)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if origin is Mapping:
        pairs = value.items() if isinstance(value, Mapping) else [None]
        return all(isinstance(pair, tuple) and all(map(_is_of, pair, kinds)) for pair in pairs)
    if origin is Sequence:
        return isinstance(value, (list, tuple)) and all(_is_of(one, *kinds) for one in value)
    if kind is Any:
        return True
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is kind


Config = TypeVar("Config", bound=Settings)


def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Builds settings from the result of `dataclasses.asdict`, after a round trip through JSON.

    Raises:
        ValueError: a field is unknown, or its value is of another type or out of range.
    """
    require(isinstance(values, Mapping), cls.__name__, "be a table of settings", values)
    kinds = {one.name: one.type for one in dataclasses.fields(cls)}
    unknown = sorted(str(name) for name in values if name not in kinds)
    require(not unknown, cls.__name__, f"have fields among {', '.join(kinds)}", ", ".join(unknown))
    return cls(**{name: _from_json(kinds[name], value) for name, value in values.items()})


def _from_json(kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Settings):
        return from_dict(kind, value)
    return tuple(value) if isinstance(value, list) else value


def paths_of(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Returns the type of every single setting by its path, such as train.weight_decay."""
    found: dict[str, Any] = {}
    for one in dataclasses.fields(settings):
        value, path = getattr(settings, one.name), f"{prefix}{one.name}"
        found |= paths_of(value, f"{path}.") if isinstance(value, Settings) else {path: one.type}
    return found


def parse_assignments(settings: Settings, assignments: Iterable[str]) -> dict[str, Any]:
    """Parses texts such as `train.weight_decay=0.1`, as `--set` takes them.

    A pair is written as `augment.noise_snr_db=0,30`, a switch as true or false.

    Returns:
        Values by path, for `replaced`.

    Raises:
        ValueError: a text has no =, names no field, or its value cannot have the field's type.
    """
    kinds, found = paths_of(settings), {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        require(equals == "=", "set", "be FIELD=VALUE, such as train.weight_decay=0.1", assignment)
        if path not in kinds:
            close = difflib.get_close_matches(path, [*kinds], n=1) or [
                known for known in kinds if known.rpartition(".")[2] == path
            ]
            hint = f" (did you mean {close[0]}?)" if close else f" (one of {', '.join(kinds)})"
            raise ValueError(f"set must name a setting of the recipe, got {path!r}{hint}")
        try:
            found[path] = _parse(text, kinds[path])
        except ValueError:
            kind = getattr(kinds[path], "__name__", kinds[path])
            raise ValueError(f"{path} must be of the type {kind}, got {text!r}") from None
    return found


def _parse(text: str, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        return tuple(_parse(part, one) for part, one in zip(text.split(","), get_args(kind), strict=True))
    if kind is bool:
        require(text in ("true", "false"), "a switch", "be true or false", text)
        return text == "true"
    return kind(text)


def replaced(settings: Config, values: Mapping[str, Any]) -> Config:
    """Returns settings with some values replaced, which are given by path, such as train.weight_decay.

    Raises:
        ValueError: a value is out of range.
    """
    direct = {path: value for path, value in values.items() if "." not in path}
    nested: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        name, dot, rest = path.partition(".")
        if dot:
            nested.setdefault(name, {})[rest] = value
    inner = {name: replaced(getattr(settings, name), some) for name, some in nested.items()}
    return dataclasses.replace(settings, **direct, **inner)


def field_docs(cls: type[Any]) -> Mapping[str, str]:
    """Returns the docstring of each field of a class of settings, which is the help text of its flag."""
    return _field_docs(cast("Hashable", cls))


@functools.cache  # reading the source of a class takes 40 ms, and a command line asks for every flag
def _field_docs(cls: Any) -> Mapping[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


def add_flag(
    parser: "argparse.ArgumentParser | argparse._ArgumentGroup",
    config: type[Settings],
    name: str,
    *,
    required: bool = False,
) -> None:
    """Adds a flag for a field, whose help text is the field's docstring and default."""
    (one,) = (one for one in dataclasses.fields(config) if one.name == name)
    default = one.default
    flag, text = f"--{name.replace('_', '-')}", field_docs(config)[name].replace("%", "%%")
    kind: Any = next((kind for kind in get_args(one.type) if kind is not types.NoneType), one.type)
    if kind is bool:
        text = f"{text} (default: {'on' if default else 'off'})"
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        return
    shown = "as the preset says" if default is None else str(default or repr(default))
    if one.metadata.get("repeats"):
        text += "; the flag may be repeated"
    note = "required" if required else f"default: {shown}"
    given: dict[str, Any] = {"required": True} if required else {"default": default}
    action: Any = "store"
    if separator := one.metadata.get("repeats"):
        action = functools.partial(_Joined, separator=separator)
    parser.add_argument(flag, type=kind, metavar=name.upper(), help=f"{text} ({note})", action=action, **given)


def read_flags(cls: type[Config], options: argparse.Namespace, **more: Any) -> Config:
    """Returns settings from the flags of `add_flag`, and given values.

    Raises:
        ValueError: a value is out of range.
    """
    return cls(**{name: getattr(options, name) for name in field_docs(cls)} | more)


class _Joined(argparse.Action):
    """Joins the values of a repeated flag."""

    def __init__(self, *arguments: Any, separator: str, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.separator = separator

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest)
        joined = values if before is self.default else f"{before}{self.separator}{values}"
        setattr(namespace, self.dest, joined.strip())


def add_registry(parser: argparse._ActionsContainer, purpose: str) -> None:
    """Adds the flag --model-registry, whose default is the environment variable.

    The purpose is what the registry is told, for the help.
    """
    parser.add_argument(
        "--model-registry",
        default=os.environ.get(MODEL_REGISTRY, ""),
        metavar="ADDRESS",
        help=f"a Kubeflow Model Registry {purpose}, such as "
        f"http://model-registry-service.kubeflow.svc.cluster.local:8080 (default: the environment variable "
        f"{MODEL_REGISTRY}, or none)",
    )
