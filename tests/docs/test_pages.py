"""Pages keep their word: tables are those of docs/results, limits are stated, links of the README lead somewhere."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"\]\((?!https?:)([^)\s#]*)(#[^)\s]*)?\)")


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def benchmarks():
    return script("benchmarks")


@pytest.mark.parametrize("page", ["docs/benchmarks.md", "README.md"])
def test_tables_are_those_of_the_committed_runs(page, benchmarks):
    text = (ROOT / page).read_text()
    calls = [found["call"] for found in benchmarks.BLOCK.finditer(text)]
    assert calls
    assert benchmarks.filled(text) == text, "run: make tables"


def test_every_committed_run_has_a_table(benchmarks):
    shown = " ".join(found["call"] for found in benchmarks.BLOCK.finditer((ROOT / "docs/benchmarks.md").read_text()))
    assert {path.stem for path in benchmarks.RESULTS.glob("*.jsonl")} <= set(shown.split())


def test_a_table_says_what_its_rows_say(benchmarks):
    row = next(
        row for row in benchmarks.rows("decode-smollm2-8192") if row["isa"] == "avx512bf16" and row["epsilon"] == 0.05
    )
    line = next(line for line in benchmarks.decode("decode-smollm2-8192").splitlines() if "avx512bf16 | 0.05" in line)
    assert f"{row['ratio']['sdpa folded']['median']:.2f} (" in line
    assert f"| {row['tv_max']:.5f} | {row['true_tv_max']:.5f} | 0 |" in line
    assert "median_ms" not in line
    assert f"{row['median_ms']:.2f}" not in line


def test_where_we_lose_is_under_the_table(benchmarks):
    for run in ("decode-smollm2-8192", "decode-smollm2-8192-xeon", "decode-gaussian-131072"):
        lost = benchmarks.decode(run).partition("**Where we lose.**")[2]
        slower = [
            row
            for row in benchmarks.rows(run)
            if row["contestant"] in benchmarks.OURS and any(ratio["median"] < 1 for ratio in row["ratio"].values())
        ]
        assert lost.count("\n- ") == len(slower) > 0


def test_the_figure_holds_the_figures_of_its_run(benchmarks, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "FIGURE", tmp_path / benchmarks.FIGURE.name)
    benchmarks.draw()
    words = re.compile(r"<text[^>]*>([^<]*)")
    drawn = words.findall(benchmarks.FIGURE.read_text())
    assert drawn == words.findall((ROOT / "docs" / "figures" / benchmarks.FIGURE.name).read_text())
    assert "reading K and V once" in drawn


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_a_page_ends_in_its_limits(page):
    sections = re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
    assert sections[-1] == "Limits"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "AGENTS.md", "CHANGELOG.md"])
def test_links_of_files_outside_the_site_lead_somewhere(page):
    for path, anchor in LINK.findall((ROOT / page).read_text()):
        target = ROOT / path if path else ROOT / page
        assert target.exists(), f"{page}: {path}"
        if anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor[1:] in slugs, f"{page}: {path}{anchor}"


def test_addresses_outside_are_found_whole():
    found = script("links").addresses()
    assert found["https://arxiv.org/abs/2510.05688"] == ["comparison.md"]
    assert not [address for address in found if address[-1] in ".,;)"]
