"""The pictures of docs/audit/: the page of an audit, wide and narrow, light and dark. `make browser` first.

.venv/bin/python scripts/screenshots.py AUDIT_FOLDER
"""

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).resolve().parent.parent / "docs" / "audit"
SHOTS = {
    "desktop-light": ((1280, 1000), "light", "#main"),
    "desktop-dark": ((1280, 900), "dark", "#head-12.2"),
    "phone-light": ((390, 844), "light", "#theory"),
    "phone-dark": ((390, 844), "dark", "#heads"),
}
MOST_BYTES = 150_000


def main() -> None:
    """Open the page, and take each picture."""
    page = (Path(sys.argv[1]) / "report.html").resolve().as_uri()
    HERE.mkdir(exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"))
        for name, ((width, height), scheme, anchor) in SHOTS.items():
            size = {"width": width, "height": height}
            shown = browser.new_page(viewport=size, color_scheme=scheme)
            shown.goto(page)
            shown.wait_for_function("document.querySelectorAll('figure.plot .main-svg').length")
            shown.evaluate(f"location.hash = '{anchor}'")
            shown.wait_for_timeout(500)
            file = HERE / f"report-{name}.png"
            shown.screenshot(path=file)
            Image.open(file).convert("RGB").save(file, optimize=True)
            if file.stat().st_size > MOST_BYTES:
                sys.exit(f"{file} has {file.stat().st_size:,} bytes, and may have {MOST_BYTES:,}")
        browser.close()


if __name__ == "__main__":
    main()
