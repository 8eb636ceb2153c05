"""A real Chromium without a window: what a page says when it is opened."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)


@dataclass(frozen=True)
class Opened:
    dom: str
    console: list[str]
    requests: list[str]
    seconds: float


def opened(page: Path, tmp_path: Path, *, script: str = "", width: int = 1100) -> Opened:
    """Open ``page``, run ``script`` once its charts are drawn, and say what came of it."""
    assert CHROMIUM is not None
    # the page's policy lets only its own scripts run, so ours is put inside; what the policy stops is on the console
    entries = "performance.getEntriesByType('resource').map((entry) => entry.name)"
    told = f"document.body.setAttribute('data-requests', JSON.stringify({entries}));"
    wait = (
        "new MutationObserver((_, o) => { if (!document.documentElement.dataset.ready) return; o.disconnect();"
        f"{script} {told} }}).observe(document.documentElement, {{attributes: true}});"
    )
    marker = '<script type="application/json" id="moeplan-json">'
    copy = tmp_path / f"opened-{page.name}"
    copy.write_text(page.read_text("utf-8").replace(marker, f"<script>{wait}</script>{marker}", 1), "utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", "--no-first-run",
               f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--enable-logging=stderr",
               "--virtual-time-budget=20000", "--dump-dom", copy.as_uri()]  # fmt: skip
    start = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    took = time.monotonic() - start
    console = re.findall(r"CONSOLE[:(]\S* (.*)", run.stderr)
    named = re.search(r'data-requests="([^"]*)"', run.stdout)
    urls = [] if named is None else json.loads(html.unescape(named.group(1)))
    return Opened(run.stdout, console, urls, took)


def table_values(dom: str) -> dict[str, object]:
    """Numbers in the page's tables by their place in the JSON."""
    found = re.findall(r'data-path="([^"]*)" data-value="([^"]*)"', dom)
    return {html.unescape(path): json.loads(html.unescape(value)) for path, value in found}


def embedded_json(dom: str) -> object:
    text = re.search(r'id="moeplan-json">(.*?)</script>', dom, re.DOTALL)
    assert text is not None
    return json.loads(text.group(1))
