"""Says in words which values a field takes."""

from __future__ import annotations

import types
from collections.abc import Iterable
from enum import EnumType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from relent.manifest.models import NAME

WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}
PLURAL = ("whole number", "number", "name")


def is_name(metadata: Iterable[Any]) -> bool:
    """Whether constraints say that a text is a name: small letters, digits and underscores."""
    parts = [part for entry in metadata for part in (entry, *getattr(entry, "metadata", ()))]
    return any(getattr(part, "pattern", None) == NAME for part in parts)


def type_in_words(annotation: Any) -> str:
    """A type in words: `number`, `list of text`, `one of a, b`, `mapping of text to Metric`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in WORDS:
        return WORDS[annotation]
    if isinstance(annotation, EnumType):
        return f"one of {', '.join(annotation.__members__)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__
    if origin is Annotated:
        return "name" if is_name(arguments[1:]) else type_in_words(arguments[0])
    if origin is Literal:
        choices = ", ".join(map(str, arguments))
        return f"one of {choices}" if len(arguments) > 1 else choices
    if origin in (Union, types.UnionType):
        return " or ".join(type_in_words(part) for part in arguments if part is not type(None))
    if origin in (list, tuple):
        part = type_in_words(arguments[0])
        return f"list of {part}s" if part in PLURAL else f"list of {part}"
    if origin is dict:
        key = "scale" if isinstance(arguments[0], EnumType) else type_in_words(arguments[0])
        return f"mapping of {key} to {type_in_words(arguments[1])}"
    return str(annotation)
