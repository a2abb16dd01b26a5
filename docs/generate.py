"""Write what the documentation takes from the code: `make docs`. With `--check`, only say whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from moe_lint.rules import all_rules
from moe_lint.rules.pages import book

DOCS = Path(__file__).parent
PAGES = {DOCS / "rules.md": lambda: book(all_rules())}


def main(check: bool) -> int:
    old = [path for path, text in PAGES.items() if not path.exists() or path.read_text(encoding="utf-8") != text()]
    for path in old:
        if not check:
            path.write_text(PAGES[path](), encoding="utf-8")
        sys.stderr.write(f"{path.relative_to(DOCS.parent)}: {'out of date; run make docs' if check else 'written'}\n")
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
