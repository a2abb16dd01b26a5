"""The rewrites as a libcst command: `python -m libcst.tool codemod --no-format -x codemods.commands.RouteGuards FILE…`.

Which sites to rewrite, and how, is for the linter to say: the command judges the file as `moe-lint check` does and
carries out the plans. This is the one module of `codemods` that knows the engine.
"""

from __future__ import annotations

import argparse

import libcst as cst
from libcst.codemod import CodemodCommand, CodemodContext, SkipFile

from moe_lint import fixing
from moe_lint.engine import Options, run
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
