"""The report of an audit: what stands in it in every state, and what a browser makes of it."""

import json
import re
from html.parser import HTMLParser

import pytest

from audits import HEADS, LAYERS, audit, save
from commands import blocked, command
from tailbound.lab.audit import page, pictures, report
from tailbound.lab.errors import InputError

STATES = {
    "whole": {},
    "no advice": {"target": None},
    "one budget for all": {"varied": False},
    "encoder": {"encoder": True, "target": "hidden-distance=0.05"},
    "many texts": {"target": None, "texts": 3},
    "interrupted among texts": {"target": None, "texts": 2, "finished": False},
    "interrupted in a run": {"finished": False},
    "interrupted in a layer": {"layers_done": 2},
    "interrupted at once": {"layers_done": 0},
}
SECTIONS = {"heads", "keys", "theory", "answers", "budget", "table", "made"}
MORE = {"many texts": {"texts"}, "interrupted among texts": {"texts"}}
ABSENT = {
    "interrupted among texts": {"answers", "budget"},
    "interrupted in a run": {"answers", "budget"},
    "interrupted in a layer": {"answers", "budget"},
    "interrupted at once": SECTIONS - {"made"},
}


class Reader(HTMLParser):
    """Sections, JSON and tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.sections, self.data, self.tags, self._json = set(), [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag == "section":
            self.sections.add(attrs["id"])
        self._json = tag == "script" and attrs.get("type") == "application/json"

    def handle_data(self, data):
        if self._json:
            self.data.append(json.loads(data))

    def handle_endtag(self, tag):
        self._json = False


@pytest.mark.parametrize("state", STATES)
def test_a_page_shows_what_there_is(state):
    found = audit(**STATES[state])
    read = Reader(page.html(found))
    assert read.sections == SECTIONS - ABSENT.get(state, set()) | MORE.get(state, set())
    figures = [charts for charts in read.data if isinstance(charts, list)]
    assert all(picture.name in pictures.NAMES for picture in pictures.of(found))
    for charts in figures:
        assert all(chart["alt"] and chart["data"] for chart in charts)
    for tag, attrs in read.tags:
        assert tag not in ("img", "iframe", "object")
        assert not {"src", "onclick", "onload"} & attrs.keys()
        assert not attrs.get("href", "#").startswith("http")
    if found["heads"]:
        things = next(part for part in read.data if isinstance(part, dict))
        assert len(things["order"]) == len(found["heads"])
        assert things["curves"]["1.2"][0][0] == pytest.approx(found["heads"][HEADS + 2]["share_0.001"], rel=1e-4)
        first = figures[0][0]["data"][0]
        assert first["z"][2][1] == pytest.approx(found["heads"][HEADS + 2]["share_0.01"], rel=1e-4)


def test_what_a_user_names_is_text():
    bad = "</script><script>alert(1)</script>&'\"<img src=x onerror=alert(1)>"
    found = audit(model=bad) | {"text": bad, "processor": bad, "why_not": bad}
    text = page.html(found)
    tags = Reader(text).tags
    assert not [tag for tag in tags if tag[0] == "img"]
    assert sum(tag == "script" and "type" not in attrs for tag, attrs in tags) == 2
    assert "alert(1)" in text


def test_plotly_is_in_the_page_once():
    assert len(re.findall(r"plotly\.js v\d", page.html(audit()))) == 1


def test_files_are_made_from_audit_json_alone(tmp_path):
    save(tmp_path, audit())
    shown = command("audit", "--redraw", "--out", str(tmp_path), "--json")
    assert shown.returncode == 0, shown.stderr
    plots = {f"{name}.png" for name in pictures.NAMES}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == plots
    assert {path.rpartition("/")[2] for path in json.loads(shown.stdout)["written"]} == {*plots, "report.html"}
    for path in (tmp_path / "plots").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report.html").read_text() == page.html(report.load(tmp_path))

    save(tmp_path, audit(layers_done=2))
    report.redraw(tmp_path)
    left = {path.name for path in (tmp_path / "plots").iterdir()}
    assert left == {"heads.png", "keys.png", "theory.png"}
    assert not list(tmp_path.rglob("*.part"))


def test_without_plotly_a_line_says_how_to_get_the_page(tmp_path):
    save(tmp_path, audit(layers_done=1))
    shown = blocked("plotly", "audit", "--redraw", "--out", str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == f"tailbound: no {tmp_path / 'report.html'}: plotly not installed; " + (
        "pip install 'tailbound[report]'\n"
    )
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "plots" / "heads.png").exists()


def test_what_is_no_audit_is_one_line(tmp_path):
    for content, words in (
        (None, "holds no audit.json"),
        ("{", "cannot read"),
        ("[]", "schema None"),
        ('{"schema": "tailbound.audit/0"}', "'tailbound.audit/0'"),
    ):
        if content is not None:
            (tmp_path / "audit.json").write_text(content)
        with pytest.raises(InputError, match=words):
            report.load(tmp_path)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = save(tmp_path_factory.mktemp("report"), audit())
    report.redraw(folder)
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module", params=["desktop, light", "phone, dark"])
def watched(request, chromium, address):
    """The page in a browser, and what it complained of or asked the network for."""
    phone = request.param.startswith("phone")
    size = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 900}
    scheme = request.param.rpartition(" ")[2]
    context = chromium.new_context(viewport=size, color_scheme=scheme, has_touch=phone)
    shown, complaints = context.new_page(), []
    shown.set_default_timeout(20_000)
    shown.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    known = (address, "data:")
    shown.on("request", lambda asked: None if asked.url.startswith(known) else complaints.append(asked.url))
    shown.goto(address)
    yield shown, complaints
    context.close()


@pytest.fixture
def opened(watched):
    shown, complaints = watched
    yield shown
    shown.evaluate("document.querySelector('dialog').close()")
    assert complaints == []


def centre_of(shown, figure, x, y):
    """Where a point of a chart is on the screen."""
    shown.locator(f"{figure} .canvas").scroll_into_view_if_needed()
    return shown.evaluate(
        """([figure, x, y]) => {
          const place = document.querySelector(`${figure} .canvas`);
          const { xaxis, yaxis } = place._fullLayout, box = place.getBoundingClientRect();
          return [box.x + xaxis._offset + xaxis.d2p(x), box.y + yaxis._offset + yaxis.d2p(y)];
        }""",
        [figure, x, y],
    )


def test_plots_are_drawn_and_nothing_is_wider_than_the_screen(opened):
    drawn = opened.eval_on_selector_all(
        "figure.plot .canvas", "places => places.map((place) => place.querySelectorAll('.trace, .hm').length)"
    )
    assert len(drawn) == 5
    assert all(drawn)
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_click_on_a_head_opens_its_page(opened):
    dialog = opened.locator("dialog")
    opened.mouse.click(*centre_of(opened, "#map-figure", 2, 1))
    dialog.wait_for(state="visible")
    assert dialog.locator("h2").inner_text() == "Head 2.1"
    line = audit()["heads"][2 * HEADS + 1]
    assert f"{line['share_0.01']:.1%}" in dialog.locator("dl").inner_text()
    assert dialog.locator(".trace").count() == 3
    dialog.get_by_label("Next").click()
    opened.wait_for_function("document.querySelector('dialog h2').textContent === 'Head 2.2'")
    opened.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert "#" not in opened.url

    line = audit()["heads"][5]
    opened.mouse.click(*centre_of(opened, "#rule-figure", line["rule_0.01"], line["share_0.01"]))
    dialog.wait_for(state="visible")
    assert dialog.locator("h2").inner_text() == "Head 1.2"
    dialog.get_by_text("Close").click()
    dialog.wait_for(state="hidden")


def test_the_table_sorts(opened):
    def column(number):
        cells = opened.locator(f"#table tbody td:nth-child({number})")
        return cells.evaluate_all("cells => cells.map((cell) => cell.dataset.value)")

    head = opened.locator("#table th").nth(1)
    for direction in ("ascending", "descending"):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction
        values = [float(value) for value in column(2)]
        assert len(values) == LAYERS * HEADS
        assert values == sorted(values, reverse=direction == "descending")
    opened.locator("#table th").get_by_text("Interval / truth").click()
    blank = column(13)
    assert blank[-HEADS:] == [""] * HEADS
    assert "" not in blank[:-HEADS]


def test_the_keyboard_reaches_everything(opened):
    opened.reload()
    wanted = opened.evaluate(
        """() => [...document.querySelectorAll("a[href], button, select, summary, [tabindex='0']")]
          .filter((part) => part.checkVisibility()).map((part, at) => { part.dataset.stop = at; return at; })"""
    )
    met = []
    for _ in wanted:
        opened.keyboard.press("Tab")
        met.append(int(opened.evaluate("document.activeElement.dataset.stop ?? -1")))
    assert met == wanted

    opened.locator("#map-figure .canvas").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        opened.keyboard.press(key)
    line = audit()["heads"][2 * HEADS + 1]
    assert opened.locator("#map-figure .live").inner_text() == f"Head 2.1: {line['share_0.01']:.1%}"
    opened.keyboard.press("Enter")
    opened.locator("dialog").wait_for(state="visible")
    assert opened.locator("dialog h2").inner_text() == "Head 2.1"
    opened.keyboard.press("Enter")
    opened.locator("dialog").wait_for(state="hidden")
    assert opened.evaluate("document.activeElement.closest('figure')?.id") == "map-figure"
    opened.locator("#rule-figure .canvas").focus()
    opened.keyboard.press("ArrowRight")
    assert opened.locator("#rule-figure .live").inner_text().startswith("Head ")


def test_charts_follow_their_choice_and_the_theme(opened):
    place = opened.locator("#map-figure .canvas")
    before = place.get_attribute("aria-label")
    opened.select_option("#map-choice", label="Spread of logits")
    assert place.get_attribute("aria-label") != before
    assert "Spread of logits" in place.get_attribute("aria-label")

    def colours():
        return opened.evaluate(
            """[getComputedStyle(document.body).backgroundColor,
              document.querySelector("#keys-figure .canvas")._fullLayout.font.color]"""
        )

    paper, ink = colours()
    opened.locator("#theme").click()
    other_paper, other_ink = colours()
    assert (paper, ink) != (other_paper, other_ink)
    assert paper != other_paper
    assert ink != other_ink
