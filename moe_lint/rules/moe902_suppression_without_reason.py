from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Finding, Severity
from moe_lint.rules.base import Context, Rule


class SuppressionWithoutReason(Rule):
    """A suppression comment gives no reason.

    `# moe-lint: ignore[MOE001]` tells the next reader that somebody disagreed with a report about wrong numbers, and
    not why. Write the reason after the bracket: `# moe-lint: ignore[MOE001] the caller reduces, see #1234`.
    """

    code = "MOE902"
    name = "suppression-without-reason"
    severity = Severity.WARNING

    def check(self, context: Context) -> Iterable[Finding]:
        return ()  # `suppress.apply_directives` reports it: it needs the other rules' findings
