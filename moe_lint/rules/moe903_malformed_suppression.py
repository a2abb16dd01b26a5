from __future__ import annotations

from collections.abc import Iterable

from moe_lint.model import Finding, Severity
from moe_lint.rules.base import Context, Rule


class MalformedSuppression(Rule):
    """A comment looks like a directive for moe-lint and is none.

    A directive is `# moe-lint: ignore[CODE, …] reason`, with the code or the name of a rule. A misspelt one silences
    nothing, in silence.
    """

    code = "MOE903"
    name = "malformed-suppression"
    severity = Severity.WARNING

    def check(self, context: Context) -> Iterable[Finding]:
        return ()  # `suppress.apply_directives` reports it: it needs the other rules' findings
