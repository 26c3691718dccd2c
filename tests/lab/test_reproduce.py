"""The paper's experiments: the same figures at every run, whole or interrupted, and a report of them."""

import json
from pathlib import Path

import pytest
from pyarrow import parquet

from commands import InterruptionError, Patience, Quiet, blocked, check_refused, command
from tailbound.lab.errors import InputError
from tailbound.lab.reproduce import gaussian, job, printed, report
from tailbound.lab.rows import Rows

FEW = gaussian.Sizes(table_2=12, table_6=4, law=3, range_keys=2048, range_most=5)


def options(out, **changes):
    return job.Options(("gaussian",), out, draws=FEW)._replace(**changes)


def tables(folder):
    return (folder / "report.md").read_text()


def columns(file):
    table = parquet.read_table(file)
    return {name: table[name].to_numpy() for name in table.column_names}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("reproduce")
    return out, job.run(options(out), Quiet())


def test_every_row_of_the_papers_tables_is_there_with_its_figure(done):
    _, result = done
    figures = result.done[0].figures
    assert {row["sigma"]: (row["paper_rule"], row["paper"]) for row in figures["gaussian.table2"]} == printed.TABLE_2
    assert all(row["rule_difference"] == 0 for row in figures["gaussian.table2"])
    six = {(row["n"], row["epsilon"]): row for row in figures["gaussian.table6"]}
    assert six.keys() == {(n, epsilon) for n in printed.TABLE_6_LENGTHS for epsilon in printed.TABLE_6}
    for row in figures["gaussian.table2"]:
        assert abs(row["simulated"] / row["paper"] - 1) < 0.1
        assert row["difference"] == row["simulated"] - row["paper"]
    assert all(abs(row["difference"]) < 0.01 for row in six.values())


def test_the_report_is_whole_and_needs_nothing_else(done):
    out, result = done
    assert result.written == [out / "report.md", out / "report.html"]
    text, page = tables(out), (out / "report.html").read_text()
    assert "## Gaussian logits" in text
    assert text.count("\n| 3.0 |") == 1
    assert page.count("<svg") == page.count("<figure") == 2
    assert page.count("<table") == 4
    for remote in ("<link", "<script", "src=", "url(http", "@import"):
        assert remote not in page
    assert "prefers-color-scheme: dark" in page
    for name in ("gaussian-law", "gaussian-range"):
        assert (out / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "plots" / f"{name}.svg").read_text().startswith("<?xml")


def test_raw_rows_are_parquet(done):
    out, _ = done
    table = parquet.read_table(out / "gaussian" / "table2")
    assert table.num_rows == 12 * len(printed.TABLE_2)
    assert table.column_names == ["n", "epsilon", "sigma", "draw", "k"]


def test_a_second_run_computes_nothing_and_gives_the_same_tables(done, monkeypatch):
    out, _ = done
    before = {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
    monkeypatch.setattr(gaussian, "_simulated", None)
    job.run(options(out), Quiet())
    assert before == {path: path.read_bytes() for path in out.rglob("*.*") if path.is_file()}


def test_an_interrupted_run_goes_on_and_gives_the_same_tables(done, tmp_path):
    with pytest.raises(InterruptionError):
        job.run(options(tmp_path), Patience(40))
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert len(first) == 40
    assert not list(tmp_path.rglob("*.part"))
    job.run(options(tmp_path), Quiet())
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())
    assert tables(tmp_path) == tables(done[0])


def test_another_seed_gives_other_rows_and_must_be_asked_for(done, tmp_path):
    job.run(options(tmp_path), Quiet())
    with pytest.raises(InputError, match=r"a run with seed 0, and this one has seed 1; name another folder.*--fresh"):
        job.run(options(tmp_path, seed=1), Quiet())
    job.run(options(tmp_path, seed=1, fresh=True), Quiet())
    assert tables(tmp_path) != tables(done[0])


def test_rows_that_were_cut_short_are_named(tmp_path):
    rows = Rows(tmp_path, {})
    with pytest.raises(InputError, match="holds no rows"):
        rows.read("table2")
    (tmp_path / "table2").mkdir()
    (tmp_path / "table2" / "a.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="cannot read the rows"):
        rows.read("table2")


def test_the_command_prints_one_json_object(tmp_path):
    job.run(options(tmp_path), Quiet())
    note = tmp_path / "gaussian" / "settings.json"
    kept = json.loads(note.read_text())
    kept["settings"]["sizes"] = gaussian.Sizes()._asdict()  # the command has no option for fewer rows
    note.write_text(json.dumps(kept))
    again = Rows(note.parent, kept["settings"])
    for file in note.parent.glob("*/*.parquet"):
        again.add(file.parent.name, file.stem, columns(file))
    shown = command("reproduce", "gaussian", "--out", str(tmp_path), "--json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["schema"] == "tailbound.reproduce/1"
    assert found["violations"] == 0
    assert len(found["jobs"][0]["figures"]["gaussian.table2"]) == 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gauss"], "no part gauss; allowed are gaussian"),
        (["gaussian", "--out", "/dev/null/x"], "cannot write to /dev/null/x"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words):
    shown = command("reproduce", *arguments)
    check_refused(shown, words)


def test_a_missing_extra_is_named_with_the_command_that_installs_it():
    shown = blocked("pyarrow", "reproduce", "gaussian", "--out", "/dev/null/x")
    assert shown.returncode == 2
    assert "pyarrow not installed; a report needs the extra: pip install 'tailbound[report]'" in shown.stderr


def test_the_report_of_figures_alone_is_the_same(done):
    out, _ = done
    assert report.compose(out).markdown == tables(out)


def test_the_documentation_shows_the_figures_that_are_committed():
    docs = Path(__file__).parents[2] / "docs"
    page = report.compose(docs / "results" / "reproduction", "reproduction")
    assert (docs / "reproduction.md").read_text() == page.markdown
    assert {path.stem for path in (docs / "reproduction").glob("*.svg")} == {chart.name for chart in page.charts}
