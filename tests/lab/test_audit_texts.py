"""An audit over many texts: in one process, resumed, damaged, and on a real Ray cluster that loses a worker."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from pydoc_data.topics import topics

import numpy as np
import psutil
import pytest
from pyarrow import parquet

from commands import Quiet, blocked
from llamas import saved
from tailbound.lab import rows, seals
from tailbound.lab.audit import job, opening, shards
from tailbound.lab.errors import InputError

CONTEXT, QUERIES, LAYERS, HEADS = 200, 6, 3, 8
NAMES = ("b.txt", "a/deep/one.md", "c.txt", "a.txt", "d.md", "e.txt")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of a small random decoder with SmolLM2's tokenizer."""
    return str(saved(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six texts, two of them in folders, and a file that is none."""
    place = tmp_path_factory.mktemp("corpus")
    longest = sorted(topics, key=lambda name: (-len(topics[name]), name))
    for name, topic in zip(NAMES, longest, strict=False):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(topics[topic])
    (place / "notes.json").write_text("{}")
    return place


@pytest.fixture(scope="module")
def asked(small, corpus):
    def options(out, **changes):
        return job.Options(out, small, texts=corpus, context=CONTEXT, queries=QUERIES)._replace(**changes)

    return options


@pytest.fixture(scope="module")
def alone(asked, tmp_path_factory):
    """An audit by one process."""
    out = tmp_path_factory.mktemp("alone")
    return out, job.run(asked(out), Quiet())


def _table(out):
    table = parquet.read_table(out / "audit.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def _same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, column in ours.items():
        np.testing.assert_array_equal(column, theirs[name], err_msg=name)


def test_every_text_is_a_part_and_all_are_one_table(alone, corpus):
    out, result = alone
    found = result.as_json()
    assert json.loads((out / "audit.json").read_text()) == seals.sealed(found)
    assert found["complete"]
    assert found["text"] == f"6 texts of {corpus}"
    assert [line["text"] for line in found["texts"]] == sorted(NAMES)
    table = _table(out)
    assert list(dict.fromkeys(table["text"].tolist())) == sorted(NAMES)
    assert len(table["layer"]) == len(NAMES) * LAYERS * HEADS * QUERIES
    label = parquet.read_metadata(out / "audit.parquet").metadata[b"tailbound"]
    assert json.loads(label)["texts"] == len(NAMES)
    assert all(line["rows"] == len(NAMES) * QUERIES for line in found["heads"])
    ours = [line for line in found["curve"] if line["policy"] == "tailbound"]
    assert all(line["positions"] == len(NAMES) * QUERIES for line in ours)
    assert all(line["certificate_max"] <= line["epsilon"] for line in ours)
    means = [line["tv_mean"] for line in found["texts"]]
    at = next(line for line in ours if line["epsilon"] == 0.01)
    assert at["tv_mean"] == pytest.approx(np.mean(means))
    assert at["tv_standard_error"] == pytest.approx(np.std(means, ddof=1) / len(means) ** 0.5)
    assert '<section id="texts">' in (out / "report.html").read_text()


def test_a_text_among_many_has_the_rows_that_it_has_alone(alone, asked, small, corpus, tmp_path):
    options = asked(tmp_path, texts=None, text=corpus / "a/deep/one.md", target="none", seed=1)
    job.run(options, Quiet())
    table = _table(alone[0])
    here = table.pop("text") == "a/deep/one.md"
    assert sorted(NAMES).index("a/deep/one.md") == 1  # whose seed is one more
    _same({name: column[here] for name, column in table.items()}, _table(tmp_path))


def test_what_is_not_whole_or_not_its_own_is_read_again(alone, asked, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(alone[0], out)
    parts = out / "parts" / "rows"
    cut, renamed, foreign, *others = sorted(parts.iterdir())
    kept = {file: file.stat().st_mtime_ns for file in others}
    cut.write_bytes(cut.read_bytes()[:-100])
    shutil.copy(others[0], renamed)
    rows.write_table(foreign, {"layer": np.zeros(3)}, {"tailbound.job": "another"})
    shutil.copy(others[0], parts / "text-00099.parquet")  # never of this corpus: not merged
    result = job.run(asked(out, resume=True), Quiet())
    assert result.figures.complete
    assert {file: file.stat().st_mtime_ns for file in others} == kept
    _same(_table(out), _table(alone[0]))
    assert result.as_json()["heads"] == alone[1].as_json()["heads"]


class Stopped(Quiet):
    """Ctrl-C after some texts."""

    def __init__(self, texts):
        self.left = texts

    @contextlib.contextmanager
    def task(self, name, total):
        yield self.step if name == "texts" else lambda: None

    def step(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_it_is_stopped_and_goes_on(alone, asked, tmp_path):
    with pytest.raises(job.InterruptedAuditError) as stopped:
        job.run(asked(tmp_path), Stopped(2))
    found = stopped.value.result.as_json()
    assert (found["complete"], len(found["texts"])) == (False, 2)
    assert "Interrupted after 2 of 6 texts" in (tmp_path / "report.html").read_text()
    with pytest.raises(InputError, match="--resume goes on"):
        job.run(asked(tmp_path), Quiet())
    with pytest.raises(InputError, match="seed 0"):
        job.run(asked(tmp_path, resume=True, seed=1), Quiet())
    with pytest.raises(InputError, match="threads 1, and this one has threads 2"):
        job.run(asked(tmp_path, resume=True, threads=2), Quiet())
    job.run(asked(tmp_path, resume=True), Quiet())
    _same(_table(tmp_path), _table(alone[0]))


def test_what_cannot_be_audited_is_said_before_any_work(asked, corpus, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(corpus, bad)
    (bad / "b.txt").write_text("hello")
    (bad / "c.txt").write_bytes(b"\xff\xfe")
    out = tmp_path / "out"
    for changes, words in (
        ({"texts": bad}, r"2 of 6 texts cannot be audited: b.txt has 1 tokens.*; cannot read .*c.txt: not UTF-8"),
        ({"texts": tmp_path / "nothing"}, "no such folder"),
        ({"texts": corpus / "*.rst"}, "no file fits it"),
        ({"texts": corpus / "a" / "deep" / "one.md"}, "no such folder"),
        ({"text": corpus / "a.txt"}, "give one of them"),
        ({"texts": None, "ray": "local"}, "one text is not split"),
        ({"target": "kl=0.1"}, "a budget is chosen on one text"),
        ({"ray": "127.0.0.1:1"}, "no cluster there"),
        ({"ray": "local", "threads": 4096, "out": tmp_path / "other"}, "the largest machine of the cluster has"),
    ):
        with pytest.raises(InputError, match=words):
            job.run(asked(out)._replace(**changes), Quiet())
    assert not list(out.rglob("*.parquet"))


def test_a_pattern_of_files(asked, corpus, tmp_path):
    result = job.run(asked(tmp_path, texts=corpus / "**" / "[ab]*.txt"), Quiet())
    assert [line["text"] for line in result.figures.texts] == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("ray", "--ray needs the extra: pip install 'tailbound[ray]'"),
        ("polars", "--texts merges with it: pip install 'tailbound[report]'"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(package, words, small, corpus, tmp_path):
    out = str(tmp_path / "out")
    shown = blocked(package, "audit", "--model", small, "--texts", str(corpus), "--ray", "local", "--out", out)
    assert (shown.returncode, shown.stderr.count("\n")) == (2, 1)
    assert words in shown.stderr
    assert not (tmp_path / "out").exists()


def test_a_worker_with_other_versions_reads_nothing(small):
    other = tuple((opening.versions() | {"torch": "1.0"}).items())
    work = shards.Work(small, "float32", False, False, QUERIES, 1, other)
    with pytest.raises(InputError, match=r"has torch .* \(1.0\).*install the same on every machine"):
        shards.Reader(work)


def _readers(process):
    """The workers of a cluster that are reading a text at this moment."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name().startswith("ray::_read"):
                found.append(child)
    return found


def _readers_of_parts(out):
    """Who read the texts that are done, as process ids."""
    parts = out.glob("parts/rows/*.parquet")
    return {int(parquet.read_metadata(part).metadata[b"tailbound.by"].split(b":")[1]) for part in parts}


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_gives_the_same_rows(alone, small, corpus, tmp_path):
    """Two workers have each read a text; one is killed in the middle of its next, which is then read again."""
    call = [
        sys.executable,
        "-m",
        "tailbound",
        "audit",
        "--model",
        small,
        "--texts",
        str(corpus),
        "--out",
        str(tmp_path),
    ]
    call += ["--context", str(CONTEXT), "--queries", str(QUERIES), "--ray", "local", "--json"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed, until = None, time.monotonic() + 300
    while killed is None and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        if len(_readers_of_parts(tmp_path)) == 2:
            for reader in _readers(process)[:1]:
                reader.kill()
                killed = reader.pid
        time.sleep(0.02)
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    found = json.loads(printed)  # nothing of Ray's is among it
    lost = [line for line in found["texts"] if line["losses"]]
    assert [line["losses"] for line in lost] == [1]
    assert not lost[0]["by"].endswith(f":{killed}")
    assert len({line["by"] for line in found["texts"]}) >= 2
    _same(_table(tmp_path), _table(alone[0]))
    ours = alone[1].as_json()
    for name in ("heads", "model", "curve"):
        assert found[name] == ours[name]
    assert not list(tmp_path.rglob("*.part"))
