"""The rewrites as libcst commands: `python -m libcst.tool codemod --no-format -x codemods.commands.RouteGuards FILE…`.

Which sites to rewrite, and how, is for the linter to say: each command judges the file as `moe-lint check` does and
carries out the plans. This is the one module of `codemods` that knows the engine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import libcst as cst
from libcst.codemod import CodemodCommand, CodemodContext, SkipFile

from moe_lint import fixing
from moe_lint.engine import Options, run
from moe_lint.initialise import plan_export, plan_init
from moe_lint.profile import load_profile


class RouteGuards(CodemodCommand):
    """Route the guard of every all-reduce after the experts through the tree's central helper."""

    DESCRIPTION = "Route guards of post-experts all-reduces through the central helper."

    def __init__(self, context: CodemodContext, profile: str = "sglang", level: str = "default") -> None:
        super().__init__(context)
        self.profile = profile
        self.level = level

    @staticmethod
    def add_args(arg_parser: argparse.ArgumentParser) -> None:
        arg_parser.add_argument("--profile", default="sglang", help="The engine's vocabulary.")
        arg_parser.add_argument(
            "--level", default="default", choices=sorted(fixing.ALLOWED), help="Which fixes to make."
        )

    def transform_module_impl(self, tree: cst.Module) -> cst.Module:
        """The rewritten module. Raises ``SkipFile`` when there is nothing to rewrite."""
        path = self.context.filename
        if path is None:
            raise SkipFile("the file has no name")
        options = Options((path,), load_profile(self.profile))
        result = fixing.fix(options, run(options), fixing.ALLOWED[self.level])
        if not result.fixed:
            raise SkipFile("no guard to rewrite")
        return cst.parse_module(result.fixed[0].after)


class AddHelper(CodemodCommand):
    """Add the central helper to the module of a tree that `moe-lint init` would add it to."""

    DESCRIPTION = "Add the central helper beside the skip predicates of a tree."

    def __init__(self, context: CodemodContext, tree: str = "", profile: str = "sglang") -> None:
        super().__init__(context)
        self.tree = tree
        self.profile = profile

    @staticmethod
    def add_args(arg_parser: argparse.ArgumentParser) -> None:
        arg_parser.add_argument("--tree", required=True, help="The folder of the tree.")
        arg_parser.add_argument("--profile", default="sglang", help="The engine's vocabulary.")

    def transform_module_impl(self, tree: cst.Module) -> cst.Module:
        """The module with the helper, if it is one of those that change. Raises ``SkipFile`` otherwise.

        Each file is asked for alone, perhaps after the helper was written into another one.
        """
        profile = load_profile(self.profile)
        plan = plan_init(self.tree, profile) or plan_export(self.tree, profile)
        path = Path(self.context.filename or "").resolve()
        for one in plan.files:
            if Path(one.path).resolve() == path:
                return cst.parse_module(one.after)
        raise SkipFile("the helper does not belong here")
