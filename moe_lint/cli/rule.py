"""`moe-lint rule`: the rules and their documentation."""

from __future__ import annotations

import json
import sys
from difflib import get_close_matches

import click

from moe_lint.cli.settings import complete_rules
from moe_lint.cli.shared import fail
from moe_lint.rules import Rule, all_rules
from moe_lint.rules.pages import book, page


@click.command("rule")
@click.argument("code", required=False, shell_complete=complete_rules, metavar="[CODE|NAME]")
@click.option("--all", "every", is_flag=True, help="The documentation of every rule.")
@click.option("--format", "output", type=click.Choice(["text", "markdown", "json"]), default="text", show_default=True)
def command(code: str | None, every: bool, output: str) -> None:
    """Show the documentation of a rule, or the list of rules."""
    if code is not None and every:
        fail("--all shows every rule; leave out the code")
    rules = all_rules() if code is None else (_rule(code),)
    if output == "json":
        found = [_record(rule) for rule in rules]
        click.echo(json.dumps(found if code is None else found[0], indent=2))
    elif code is None and not every:
        click.echo(_listing(rules, output))
    else:
        _show(book(rules) if code is None else page(rules[0]), output)


def _rule(wanted: str) -> Rule:
    for rule in all_rules():
        if wanted.upper() == rule.code or wanted.lower() == rule.name:
            return rule
    names = {name: rule.code for rule in all_rules() for name in (rule.code, rule.name)}
    close = get_close_matches(wanted, names, 1) or get_close_matches(wanted.upper(), names, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    fail(f"unknown rule {wanted!r}; {hint}`moe-lint rule` lists them")


def _listing(rules: tuple[Rule, ...], output: str) -> str:
    if output == "markdown":
        return "\n".join(f"- **{rule.code}** {rule.name}: {rule.summary}" for rule in rules)
    return "\n".join(
        f"{rule.code}  {rule.name:28} {rule.severity.value:8} {rule.summary}"
        f"{'' if rule.on_by_default else '  (off by default)'}"
        for rule in rules
    )


def _record(rule: Rule) -> dict[str, object]:
    return {
        "code": rule.code,
        "name": rule.name,
        "severity": rule.severity.value,
        "confidence": rule.confidence.value,
        "default": rule.on_by_default,
        "summary": rule.summary,
        "documentation": rule.documentation,
    }


def _show(markdown: str, output: str) -> None:
    """Rendered on a terminal; as it is written elsewhere, so that it can be kept."""
    if output == "markdown" or not sys.stdout.isatty():
        click.echo(markdown.rstrip("\n"))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    console.print(Markdown(markdown, code_theme="ansi_dark"), width=min(console.width, 100))
