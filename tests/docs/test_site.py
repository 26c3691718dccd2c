"""The built site: every link leads somewhere, and a browser that reads it asks the network for nothing.

Run by `make docs`, which builds it and says where by TAILBOUND_SITE.
"""

import functools
import os
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

if "TAILBOUND_SITE" not in os.environ:
    pytest.skip("make docs builds the site and runs these", allow_module_level=True)

SITE = Path(os.environ["TAILBOUND_SITE"]).resolve()
PAGES = sorted(path for path in SITE.rglob("*.html") if path.name != "404.html")


class Page(HTMLParser):
    """Addresses of a page, and the places in it that can be gone to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.places = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.places |= {attrs[name] for name in ("id", "name") if attrs.get(name)}
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        elif tag == "link" and attrs.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(attrs["href"])
        elif tag in ("script", "img", "iframe", "source") and "src" in attrs:
            self.loads.append(attrs["src"])


@pytest.fixture(scope="module")
def pages():
    return {path: Page(path) for path in PAGES}


def target(path, address):
    return (path.parent / unquote(urlsplit(address).path)).resolve() if urlsplit(address).path else path


def test_every_link_inside_leads_somewhere(pages):
    assert len(pages) > 15
    broken = []
    for path, page in pages.items():
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme:
                continue
            to = target(path, address)
            known = pages.get(to)
            missing = not to.exists() or (known and parts.fragment and unquote(parts.fragment) not in known.places)
            if missing and parts.fragment != "__codelineno":
                broken.append(f"{path.name}: {address}")
    assert not broken, broken


def test_what_a_page_loads_lies_in_the_site(pages):
    for path, page in pages.items():
        for address in page.loads:
            assert not urlsplit(address).scheme or address.startswith("data:"), f"{path.name}: {address}"
            assert target(path, address).exists(), f"{path.name}: {address}"


def test_reading_the_site_asks_the_network_for_nothing(chromium):
    shown = chromium.new_page()
    asked, errors = [], []
    shown.on("request", lambda request: asked.append(request.url))
    shown.on("pageerror", lambda error: errors.append(str(error)))
    for path in PAGES:
        shown.goto(path.as_uri())
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    assert not errors


@pytest.fixture(scope="module")
def address():
    """Of the site as a server on this machine gives it: a browser starts no search in pages that come from a folder."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_search_asks_nobody_but_the_server(chromium, address):
    shown = chromium.new_page()
    asked = []
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(address + "index.html")
    shown.click("input.md-search__input")
    shown.keyboard.type("certificate")
    shown.wait_for_function("document.querySelectorAll('.md-search-result__link').length > 5")
    assert not [url for url in asked if not url.startswith((address, "data:", "blob:"))]


def test_a_page_is_no_wider_than_a_phone(chromium):
    shown = chromium.new_page(viewport={"width": 390, "height": 844})
    for path in PAGES:
        shown.goto(path.as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") <= 390, path.name
