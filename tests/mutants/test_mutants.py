"""The table of mutants fits the sources of today, and the runner says no where it proves nothing."""

import contextlib

import pytest

from mutants import run
from trees import ROOT, StaleError, changed, check

MUTANTS = run.load()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_patch_fits_once_and_names_tests_that_are_there(mutant):
    check(ROOT / mutant.file, mutant.text, mutant.name)
    assert mutant.instead != mutant.text
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert name in (ROOT / file).read_text(), f"{file} has no {name}"


def test_there_are_enough_of_them_and_enough_in_the_kernels():
    assert len(MUTANTS) >= 30
    assert sum(mutant.native for mutant in MUTANTS) >= 12
    assert len({(m.file, m.text, m.instead) for m in MUTANTS}) == len(MUTANTS)


def test_a_changed_file_is_put_back(tmp_path):
    file = tmp_path / "source"
    file.write_text("a b a")
    with changed(file, "b", "c", "name"):
        assert file.read_text() == "a c a"
    assert file.read_text() == "a b a"
    with contextlib.suppress(KeyError), changed(file, "b", "c", "name"):
        raise KeyError
    assert file.read_text() == "a b a"


@pytest.mark.parametrize("text", ["there is no such text", "import"])
def test_a_stale_patch_is_refused(text, capsys, monkeypatch):
    file = "src/tailbound/bounds/rounding.py"
    stale = run.Mutant("old", "nothing", file, text, "", ("tests/bounds",))
    with pytest.raises(StaleError, match="times, not once"):
        run.choose([stale], [])
    monkeypatch.setattr(run, "load", lambda: [stale])
    assert run.main([]) == 1
    assert "not once" in capsys.readouterr().err


def test_no_mutant_at_all_is_no_success(capsys, monkeypatch):
    monkeypatch.setattr(run, "load", lambda: [])
    assert run.main([]) == 1
    assert "no mutant to run" in capsys.readouterr().err
    monkeypatch.undo()
    assert run.main(["no-such-mutant"]) == 1
    assert "no-such-mutant" in capsys.readouterr().err


def test_a_survivor_fails_the_run(capsys, monkeypatch):
    killed = run.Verdict(MUTANTS[0], "tests/some.py::test", "AssertionError", 1.0)
    for verdicts, code in (([killed], 0), ([killed, killed._replace(killer=None)], 1)):
        monkeypatch.setattr(run, "run", lambda mutants, console, found=verdicts: found)
        assert run.main([MUTANTS[0].name]) == code
        assert ("survived" in capsys.readouterr().out) == bool(code)
