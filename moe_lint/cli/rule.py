"""`moe-lint rule`: the rules and their documentation."""

from __future__ import annotations

import click

from moe_lint.cli.shared import fail
from moe_lint.rules import all_rules


@click.command("rule")
@click.argument("code", required=False)
def command(code: str | None) -> None:
    """Show the documentation of a rule, or the list of rules."""
    if code is None:
        for one in all_rules():
            default = "" if one.on_by_default else "  (off by default)"
            click.echo(f"{one.code}  {one.name:28} {one.severity.value:8} {one.summary}{default}")
        return
    for one in all_rules():
        if code.upper() == one.code or code == one.name:
            default = "on" if one.on_by_default else "off"
            click.echo(f"{one.code} {one.name}")
            click.echo(f"severity {one.severity.value}, confidence {one.confidence.value}, {default} by default\n")
            click.echo(one.documentation)
            return
    fail(f"unknown rule {code!r}; `moe-lint rule` lists them")
