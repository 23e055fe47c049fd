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
        return _typed(options[0], value, where) if len(options) == 1 else value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value, where)
    if origin is tuple and isinstance(value, (tuple, list)):
        inner = typing.get_args(hint)[0]
        return tuple(_typed(inner, item, where) for item in value)
    return value
