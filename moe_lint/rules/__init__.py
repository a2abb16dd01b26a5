"""The rules: one file each, found by walking this package, sorted by code."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from moe_lint.rules.base import Case, Context, Rule

__all__ = ["Case", "Context", "Rule", "all_rules"]


@cache
def all_rules() -> tuple[Rule, ...]:
    """One instance of every rule in the package, by code."""
    found: list[Rule] = []
    for module in iter_modules(__path__):
        if module.name.startswith("moe"):
            names = vars(import_module(f"{__name__}.{module.name}"))
            found += [
                value()
                for value in names.values()
                if isinstance(value, type) and issubclass(value, Rule) and value.code
            ]
    return tuple(sorted({rule.code: rule for rule in found}.values(), key=lambda rule: rule.code))
