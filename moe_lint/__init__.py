"""moe-lint: the all-reduce after the experts runs exactly once.

The stable Python interface is `check` and the values that it returns. Everything is loaded when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe_lint.api import check
    from moe_lint.model import Finding, Problem, Report, Severity, Span, UsageError

__all__ = ["Finding", "Problem", "Report", "Severity", "Span", "UsageError", "check"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("moe_lint.api" if name == "check" else "moe_lint.model"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
