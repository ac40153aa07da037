"""A real browser, where there is one: the page as it stands once its scripts have run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NO_CHROME = "no Chromium or Chrome on this machine (Debian: apt-get install chromium)"
MARK = "document.title='it-ran'"
HOSTILE = (
    f"<script>{MARK}</script>",
    f"</title></style></pre></td></table><script>{MARK}</script>",
    f'<img src=x onerror="{MARK}">',
    f'"><svg onload="{MARK}">',
    f"' autofocus onfocus=\"{MARK}\" x='",
    f'<iframe srcdoc="<script>parent.{MARK}</script>"></iframe>',
    f'<a href="javascript:{MARK}">x</a>',
    f'<meta http-equiv=refresh content="0;url=javascript:{MARK}">',
    "{{ ''.__class__ }}{% for x in range(9) %}TEMPLATE{% endfor %}${7*7}",
    "]]>--><!--",
)
"""Texts that set the page's title to ``it-ran`` if anything of them runs."""


def shown(page: Path, profile: Path) -> str:
    """The document, as HTML, that a page has become."""
    done = subprocess.run(
        [
            str(CHROME),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout
