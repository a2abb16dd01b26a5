from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Finding, Severity
from moe_lint.rules.base import Context, Rule


class UnusedSuppression(Rule):
    """A suppression comment silences nothing.

    The finding that it was written for is gone: the guard was fixed, or the code moved. Left behind, the comment will
    silence the next bug on that line. Remove it. Reported only when every rule that the comment names took part in
    the run.
    """

    code = "MOE901"
    name = "unused-suppression"
    severity = Severity.WARNING

    def check(self, context: Context) -> Iterable[Finding]:
        return ()  # `suppress.apply_directives` reports it: it needs the other rules' findings
