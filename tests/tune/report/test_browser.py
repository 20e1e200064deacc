"""The report in a real browser: it draws, says nothing on the console, asks for nothing, and fits a phone."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import tempfile
import threading

import numpy as np
import pytest

from tests.assets.simulated_study import SMALL, simulate_study
from tune.report.inputs import read_study
from tune.report.page import render

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
PHONE, DESK = "390,800", "1280,900"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory):
    """Serve the report on loopback; yield (address, paths asked for)."""
    config = simulate_study(str(tmp_path_factory.mktemp("study")), SMALL, bootstrap_samples=20)
    directory = tmp_path_factory.mktemp("site")
    page = render(read_study(config))["index.html"]
    (directory / "index.html").write_text(page, encoding="utf-8")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, directory=str(directory), **options)

        def log_message(self, *arguments):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html", asked
    server.shutdown()


def browse(address: str, size: str, *more: str) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as profile:
        return subprocess.run(
            [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync", f"--user-data-dir={profile}",
             f"--window-size={size}", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000", *more, address],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_the_console_stays_silent_and_nothing_else_is_asked_for(site, size):
    address, asked = site
    asked.clear()
    done = browse(address, size, "--dump-dom")
    assert done.returncode == 0, done.stderr[-2000:]
    assert not re.findall(r".*CONSOLE.*", done.stderr)
    assert set(asked) == {"/index.html"}
    assert 'class="tip"' in done.stdout, "the page's script has run"
    assert '<div class="keys" role="group" aria-label="Show or hide">' in done.stdout, (
        "and has shown the buttons"
    )


def test_a_script_that_is_not_the_pages_own_does_not_run(site, tmp_path):
    address, _ = site
    text = browse(address, DESK, "--dump-dom").stdout
    smuggled = tmp_path / "index.html"
    smuggled.write_text(text.replace("</main>", "<script>document.title='taken over'</script></main>"))
    done = browse(smuggled.as_uri(), DESK, "--dump-dom")
    assert "<title>taken over</title>" not in done.stdout
    assert "Content Security Policy" in done.stderr


def test_a_phone_scrolls_down_and_not_sideways(site, tmp_path):
    address, _ = site
    picture = tmp_path / "phone.png"
    # The screenshot is as wide as the layout, and a layout wider than the window would be cut: measure it instead.
    wide = browse(address, "390,4000", f"--screenshot={picture}", "--hide-scrollbars")
    assert wide.returncode == 0
    from PIL import Image

    with Image.open(picture) as image:
        assert image.size[0] <= 500  # headless Chromium's narrowest window
        edge = image.convert("L").crop((image.size[0] - 4, 0, image.size[0], image.size[1]))
        assert len(np.unique(np.asarray(edge))) == 1, "text or a drawing runs into the right edge"
