"""`python -m tests.mutation TREE [MODULE…]`: sabotage a tree's rewritten files and write what became of it.

Prints Markdown. Without modules: every model file with a reduction that the helper decides on.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from moe_lint.profile import load_profile
from reference_runtime.plan import Settings
from tests.mutation.driver import survey
from tests.mutation.table import render, row


def main() -> int:
    """0: no sabotage was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("tree", type=Path)
    parser.add_argument("modules", nargs="*")
    parser.add_argument("--profile", default="sglang")
    parser.add_argument("--parallel", type=int, default=2)
    arguments = parser.parse_args()
    began = time.monotonic()
    settings = Settings(timeout=60.0, parallel=arguments.parallel)
    results = survey(arguments.tree, arguments.modules, load_profile(arguments.profile), settings)
    sys.stdout.write(render([row(result) for result in results], arguments.tree.name, time.monotonic() - began))
    return 1 if any(result.outcome == "missed" for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
