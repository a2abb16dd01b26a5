"""`moe-lint init`: write the helper that a tree lacks."""

from __future__ import annotations

import shlex

import click

from moe_lint.api import options_of
from moe_lint.cli.settings import repeated, settings_for, tree_options
from moe_lint.initialise import plan_init
from moe_lint.rewritten import diff, write_all


@click.command("init")
@click.argument("tree", metavar="TREE")
@click.option("--into", metavar="FILE", help="The module that gets the helper (default: beside the skip predicates).")
@click.option("--diff", "do_diff", is_flag=True, help="Show the change and write nothing.")
@tree_options
@click.pass_context
def command(context: click.Context, tree: str, into: str | None, do_diff: bool) -> None:
    """Write the helper that the guards of a tree add up to."""
    options = options_of((tree,), settings_for(context, (tree,)), baseline=False)
    plan = plan_init(tree, options.profile, into, options.files)
    if plan is None:
        click.echo("the tree has its helper already; nothing to do")
        return
    if do_diff:
        click.echo(diff(plan.files), nl=False)
        return
    write_all(plan.files)
    for one in plan.files:
        click.echo(f"wrote {one.path}")
    following = shlex.join(["moe-lint", "--fix", *repeated(context), tree])
    click.echo(f"added `{plan.helper.name}`; next: {following}")
