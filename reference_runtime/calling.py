"""Call target code by the names of its parameters: releases and forks differ in order and number."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from reference_runtime.stubs import Stub


def call(function: Callable[..., Any], available: Mapping[str, Any]) -> Any:
    """Call with those of the available values that the function has parameters for.

    A parameter that is required and has no value here gets a placeholder: good enough where it is only handed on.
    """
    given: dict[str, Any] = {}
    for name, parameter in parameters(function).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in available:
            given[name] = available[name]
        elif parameter.default is parameter.empty:
            where = getattr(function, "__qualname__", repr(function))
            given[name] = Stub(f"{where}({name}=…)")
    return function(**given)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether the function has a parameter of that name."""
    return name in parameters(function)


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters that a caller gives: of a method, those after the first."""
    inner = getattr(function, "__func__", None)
    if inner is None or not inspect.ismethod(function):
        return _parameters(function)
    found = _parameters(inner)
    return dict(itertools.islice(found.items(), 1, None))


@functools.lru_cache(maxsize=512)
def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters
