"""What helps to bring moe-lint to a tree full of findings: writing them down, silencing them one by one."""

from __future__ import annotations

import sys
from typing import NoReturn

from moe_lint.api import path_of
from moe_lint.atomic import replace_file
from moe_lint.baseline import render_baseline
from moe_lint.cli.shared import fail, tell_failures, to_stderr
from moe_lint.config import Settings
from moe_lint.model import Report


def write_baseline(report: Report, settings: Settings) -> NoReturn:
    """Write down what is found, and exit."""
    if report.exit_code == 2:
        tell_failures(report)
        fail("no baseline was written: something could not be judged")
    file = path_of(settings.one("baseline"))
    text = render_baseline(report.findings, (silenced.finding for silenced in report.suppressed), file)
    try:
        replace_file(file, text.encode())
    except OSError as error:
        fail(f"{file}: the baseline cannot be written: {error.strerror or error}")
    count = len(report.findings)
    to_stderr(f"moe-lint: {count} finding{'' if count == 1 else 's'} written down in {file}")
    sys.exit(0)
