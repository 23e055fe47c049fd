"""Frozen dataclasses to JSON values and back: the form of configs in checkpoints, recipes and run folders."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from davit.naming import unknown_name

T = TypeVar("T")


def to_json(record: Any) -> dict[str, Any]:
    """Turn a dataclass into nested dicts, lists, strings and numbers."""
    return {f.name: _plain(getattr(record, f.name)) for f in dataclasses.fields(record)}


def from_json(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build `cls` from what `to_json` made.

    Raises:
        ValueError: a key that is no field (the nearest field is named), a missing required key, or a value that the
            class itself refuses.
    """
    where = where or cls.__name__
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected an object with fields, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise unknown_name(f"field of {where}", key, fields)
    missing = [
        f.name
        for f in fields.values()
        if f.name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}")
    return cls(**{key: _typed(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def assign(record: T, path: str, text: str, *, prefix: str = "") -> T:
    """Copy a dataclass with the field at a dotted `path`, such as `data.batch_size`, read from `text`.

    Lists are written with commas, an absent value as `none`; `prefix` only completes the path in messages.

    Raises:
        ValueError: no such field (the nearest is named), text of the wrong type, or a value that the class refuses.
    """
    return assign_all(record, {path: text}, prefix=prefix)


def assign_all(record: T, texts: Mapping[str, str], *, prefix: str = "") -> T:
    """Set several fields as `assign` does; what a class asks of its fields together is asked of all of them.

    Raises:
        ValueError: as `assign`.
    """
    hints = typing.get_type_hints(type(record))
    names = [f.name for f in dataclasses.fields(record)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    groups: dict[str, dict[str, str]] = {}
    for path, text in texts.items():
        name, _, rest = path.partition(".")
        if name not in names:
            raise unknown_name("field", prefix + path, [prefix + known for known in field_paths(record)])
        value = getattr(record, name)
        if not dataclasses.is_dataclass(value):
            if rest:
                raise ValueError(f"{prefix}{name} is a value and has no field {rest!r}: write {prefix}{name}=VALUE")
            changes[name] = _parsed(hints[name], text, prefix + path)
        elif rest:
            groups.setdefault(name, {})[rest] = text
        else:
            listed = ", ".join(f"{prefix}{path}.{known}" for known in field_paths(value))
            raise ValueError(f"{prefix}{path} is a group of fields: set one of {listed}")
    for name, inner in groups.items():
        changes[name] = assign_all(getattr(record, name), inner, prefix=f"{prefix}{name}.")
    return dataclasses.replace(record, **changes)  # type: ignore[type-var]


def field_paths(record: Any) -> list[str]:
    """Dotted paths of all fields that hold values, groups opened."""
    paths: list[str] = []
    for f in dataclasses.fields(record):
        value = getattr(record, f.name)
        inner = field_paths(value) if dataclasses.is_dataclass(value) else []
        paths += [f"{f.name}.{path}" for path in inner] or [f.name]
    return paths


def differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Where two JSON values differ: "path: value in a instead of value in b"."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = dict.fromkeys([*a, *b])
        return [line for key in keys for line in differences(a.get(key), b.get(key), f"{prefix}.{key}".lstrip("."))]
    return [] if a == b else [f"{prefix}: {a!r} instead of {b!r}"]


def _parsed(hint: Any, text: str, path: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        return None if text.lower() == "none" else _parsed(options[0], text, path)
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        for choice in choices:
            if str(choice) == text:
                return choice
        raise unknown_name(f"value of {path}", text, map(str, choices))
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_parsed(inner, part.strip(), path) for part in text.strip("()[]").split(",") if part.strip())
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{path} must be true or false, got {text!r}")
        return text.lower() == "true"
    try:
        return hint(text)
    except ValueError:
        raise ValueError(f"{path} must be of type {hint.__name__}, got {text!r}") from None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return value


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if len(options) > 1 and all(dataclasses.is_dataclass(option) for option in options):
            return from_json(_most_alike(options, value), value, where)
        return _typed(options[0], value, where) if len(options) == 1 else value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value, where)
    if origin is tuple and isinstance(value, (tuple, list)):
        inner = typing.get_args(hint)[0]
        return tuple(_typed(inner, item, where) for item in value)
    return value


def _most_alike(options: list[Any], value: Any) -> Any:
    """The dataclass with most of the keys; the classes of one field have different fields."""
    keys = set(value) if isinstance(value, Mapping) else set()
    return max(options, key=lambda option: len(keys & {field.name for field in dataclasses.fields(option)}))
