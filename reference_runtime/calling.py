"""Call target code by the names of its parameters: releases and forks differ in order and number."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from reference_runtime.stubs import Stub


def call(function: Callable[..., Any], available: Mapping[str, Any]) -> Any:
    """Call with those of the available values that the function has parameters for.

    A parameter that is required and has no value here gets a placeholder: good enough where it is only handed on.
    """
    given: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
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
    return name in inspect.signature(function).parameters
