"""Make the README's pictures out of real runs: `make pictures`.

`terminal.svg` is a run on the pretend engine of `fixtures/`. `matrix.png` is the HTML matrix of a real release, as a
headless browser shows it; it needs Chromium or Chrome, and the release from the package index.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 118
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
RELEASE = "0.5.10.post1"


def moe_lint(*args: str, folder: Path) -> str:
    """What a run prints on a terminal with colours."""
    command = [sys.executable, "-m", "moe_lint", *args]
    env = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False).stdout


def terminal() -> None:
    folder = ROOT / "fixtures" / "pretend_engine"
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    for args in (["engine/models/pair.py"], ["--diff", "engine/models/fusion_only.py"]):
        console.print(Text(f"$ moe-lint {' '.join(args)}", "bold"))
        console.print(Text.from_ansi(moe_lint(*args, folder=folder)))
    svg = console.export_svg(title="moe-lint", unique_id="moe-lint")
    # a picture that loads a font from elsewhere is not shown by code hosts
    (PICTURES / "terminal.svg").write_text(re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL))


def matrix() -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"matrix.png is left as it was: none of {', '.join(BROWSERS)} is installed")
    sys.path.insert(0, str(ROOT))
    from tests.corpus.releases import release

    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "matrix.html"
        moe_lint("matrix", "--output", f"html:{page}", "sglang", folder=release(RELEASE))
        # one row open, to show what is behind it
        opened = "<script>document.querySelector(\"[data-text*=qwen3_moe][data-drift='1'] .site\").click();</script>"
        page.write_text(page.read_text().replace("</body>", f"{opened}</body>"))
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        size = ["--window-size=1440,1480", "--force-device-scale-factor=1.25"]
        target = [f"--screenshot={PICTURES / 'matrix.png'}", f"{page.as_uri()}#drift=1"]
        subprocess.run([*command, *size, *target], check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    terminal()
    matrix()
