"""The soak: what it draws, that its oracle is right, that it finds what is wrong, and what it leaves behind."""

import json
import math
from collections import Counter

import mpmath
import numpy as np
import pytest
import torch

import oracles
from asking import halve_tv
from commands import Quiet, check_refused, command
from tailbound import Certificate, KVIndex, Status
from tailbound.lab.captures import Layer
from tailbound.lab.errors import InputError
from tailbound.lab.soak import cases, files, job, judging, kinds, oracle
from tailbound.lab.soak.tally import Tally

CASES = 60


@pytest.fixture
def halved(monkeypatch):
    """An index whose certificates are half of what they must be."""
    halve_tv(monkeypatch)


def test_a_number_draws_the_same_case_again():
    for number in range(CASES):
        a, b = cases.draw(3, number), cases.draw(3, number)
        assert torch.equal(a.key.nan_to_num(), b.key.nan_to_num())
        assert (a.kind, a.who, a.steps) == (b.kind, b.who, b.steps)
        assert len(a.held()) > 0 or a.steps[-1][0] != "write"


def test_the_draw_reaches_what_it_should():
    drawn = [cases.draw(0, number) for number in range(1200)]
    assert {case.kind for case in drawn} == set(kinds.KINDS)
    assert {case.key.dtype for case in drawn} == {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    assert {step for case in drawn for step, _ in case.steps} == {"write", "crop", "drop_front"}
    assert {name for case in drawn for name in case.options} == {"is_causal", "attn_mask", "softcap", "sink", "scale"}
    assert {case.threads for case in drawn} == {1, 2}
    assert {"reference", "torch", "index/torch"} < {case.who for case in drawn}
    rows = Counter()
    for case in drawn:
        rows[len(case.held()) >= cases.LONG] += math.prod(case.query.shape[:3])
    assert rows[True] >= 0.01 * rows.total()


def test_all_kinds_hold_and_more_than_half_are_sparse():
    tally = Tally()
    for number in range(CASES):
        assert judging.judge(cases.draw(1, number), tally) == []
    assert tally.cases == CASES
    assert tally.rows == sum(tally.lengths.values()) == sum(tally.kinds.values()) == sum(tally.makers.values())
    assert tally.sparse >= 0.5
    assert 0 < tally.margin < 1e-3
    assert 1 <= tally.quantile(0.5) <= tally.quantile(0.99)


def _call(case):
    answer, held = judging.ask(case)
    return judging._call(case, answer, held)


def test_the_three_steps_of_the_oracle_agree_with_one_another_and_with_the_tests():
    """Each within what it says it may be off by, on all options at once."""
    judged = 0
    for number in range(400):
        case = cases.draw(2, number)
        if len(case.held()) > 60 or case.kind == "not finite":
            continue
        call = _call(case)
        fast, finite = oracle.in_float64(call), oracle.finite(call) & call.visible.any(-1)
        options = dict(scale=call.scale, visible=call.visible, bias=call.bias, softcap=call.softcap, sink=call.sink)
        rows = oracles.attention(call.query, call.key, call.value, call.kept, **options)
        for row, tail, output in rows:
            if not finite[row]:
                continue
            judged += 1
            away = oracles.distance(call.output[row], output)
            tv, gap = oracle.in_digits(call, row)
            assert abs(tv - tail) <= mpmath.mpf(10) ** -50 * tail
            assert abs(gap - away) <= mpmath.mpf(10) ** -45 * (away + 1)
            assert abs(fast.tv[row].item() - tail) <= fast.tv_error[row].item()
            assert abs(fast.away[row].item() - away) <= fast.away_error[row].item()
            wide = oracle.in_longdouble(call, row)
            if wide is not None:
                assert abs(wide[0] - tail) <= wide[2] + 2.0**-53 * tail
                assert abs(wide[1] - away) <= wide[3] + 2.0**-53 * away
            if judged > 150:
                return
    assert judged > 100


@pytest.mark.usefixtures("halved")
def test_a_certificate_below_the_truth_is_found_and_can_be_asked_again(tmp_path, capsys):
    result = job.run(job.Options(minutes=0.02, seed=4, out=tmp_path / "found", processes=1), Quiet())
    assert result.tally.violations > 0
    assert any("is below the truth" in violation.words for violation in result.violations)
    assert "please report it" in result.verdict()
    again = job.replay(result.replays[0])
    assert again.violations == [v for v in result.violations if v.number == again.violations[0].number]
    first = again.violations[0]
    assert job.replay(f"{first.seed}:{first.number}").violations == again.violations


WRONG = {
    "tv is above epsilon": lambda tv, error, kept, status: (tv + 1, error, kept, status),
    "kept is not the number": lambda tv, error, kept, status: (tv, error, kept + 1, status),
    "output_error": lambda tv, error, kept, status: (tv, error * 0, kept, status),
    "DENSE must mean": lambda tv, error, kept, status: (tv, error, kept, torch.full_like(status, Status.DENSE)),
    "EMPTY must mean": lambda tv, error, kept, status: (tv, error, kept, torch.full_like(status, Status.EMPTY)),
    "NONFINITE must mean": lambda tv, error, kept, status: (tv, error, kept, torch.full_like(status, Status.NONFINITE)),
}


@pytest.mark.parametrize("words", WRONG)
def test_every_promise_is_checked(words, monkeypatch):
    case = next(
        case
        for case in (cases.draw(6, number) for number in range(100))
        if case.kind == "spread" and case.who not in cases.WHOLE and len(case.held()) > 256 and case.epsilon == 0.05
    )
    assert judging.judge(case, Tally()) == []
    attend = KVIndex.attend

    def broken(self, query, **options):
        found = attend(self, query, **options)
        return found._replace(certificate=Certificate(*WRONG[words](*found.certificate)))

    monkeypatch.setattr(KVIndex, "attend", broken)
    assert any(words in violation.words for violation in judging.judge(case, Tally()))


def test_a_key_that_is_not_seen_and_an_output_that_is_not_zero_are_found(monkeypatch):
    case = next(
        case
        for case in (cases.draw(7, number) for number in range(400))
        if case.who not in cases.WHOLE
        and "attn_mask" in case.options
        and case.options["attn_mask"].dtype is torch.bool
        and case.kind == "spread"
    )
    hidden = {**case.options, "attn_mask": torch.zeros_like(case.options["attn_mask"])}
    attend = KVIndex.attend

    def broken(self, query, **options):
        found = attend(self, query, **options)
        return found._replace(kept=torch.ones_like(found.kept), output=found.output + 1)

    monkeypatch.setattr(KVIndex, "attend", broken)
    for given, words in ((case.options, "does not see"), (hidden, "is not zero")):
        found = judging.judge(cases.replace(case, options=given), Tally())
        assert any(words in violation.words for violation in found)


def test_a_capture_serves_a_third_of_the_cases():
    gen = torch.Generator().manual_seed(0)
    layer = Layer(*(torch.randn(1, h, n, 16, generator=gen) for h, n in ((4, 8), (2, 500), (2, 500))), 0.25)
    tally = Tally()
    for number in range(30):
        assert judging.judge(cases.draw(1, number, [layer]), tally) == []
    assert 0 < tally.kinds[cases.CAPTURED] < tally.rows


def test_a_case_survives_its_file(tmp_path):
    for number in range(40):
        case = cases.draw(5, number)
        files.save(case, tmp_path / "case.npz")
        read = files.load(tmp_path / "case.npz")
        for name in ("query", "key", "value"):
            a, b = getattr(case, name), getattr(read, name)
            assert a.dtype is b.dtype
            assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        assert (case.steps, case.who, case.kind, case.threads) == (read.steps, read.who, read.kind, read.threads)
        assert case.options.keys() == read.options.keys()


def test_a_file_that_is_damaged_is_one_line(tmp_path):
    path = tmp_path / "case.npz"
    case = cases.draw(5, 1)
    files.save(case, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="cannot read"):
            files.load(path)
    for _ in range(200):
        spoiled = bytearray(whole)
        spoiled[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(spoiled))
        try:
            read = files.load(path)  # a bit that nothing depends on, as a date
        except InputError:
            continue
        assert torch.equal(read.query.nan_to_num(7.0), case.query.nan_to_num(7.0))
        assert read.steps == case.steps
    np.savez(path, case=np.array(json.dumps({"schema": "tailbound.case/0"})))
    with pytest.raises(InputError, match="this version reads"):
        files.load(path)
    np.savez(path, case=np.array([object()], dtype=object))  # a pickle
    with pytest.raises(InputError, match="cannot read"):
        files.load(path)


@pytest.mark.slow
def test_the_command_judges_in_processes_and_says_what_it_did():
    shown = command("verify", "--minutes", "0.15", "--seed", "9", "--processes", "2", "--json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert (found["schema"], found["violations"], found["broken"]) == ("tailbound.soak/1", 0, [])
    assert found["certificates"] == sum(found["statuses"].values()) > 0
    shown = command("verify", "--replay", "9:3")
    assert shown.returncode == 0
    assert "certificates hold" in shown.stdout


def test_what_cannot_be_done_is_one_line(tmp_path):
    for arguments, words in (
        (["--minutes", "0"], "--minutes 0"),
        (["--minutes", "1", "--seed", "-1"], "--seed -1"),
        (["--minutes", "1", "--capture", str(tmp_path / "none")], "no such file"),
        (["--replay", str(tmp_path / "none.npz")], "no such file"),
        (["--replay", "1:2", "--minutes", "1"], "without --minutes"),
        (["--model", "smollm2", "--minutes", "1", "--capture", "x"], "give one"),
    ):
        shown = command("verify", *arguments)
        check_refused(shown, words)


def test_tallies_add_up():
    a, b = Tally(), Tally()
    for tally, numbers in ((a, range(6)), (b, range(6, 12))):
        for number in numbers:
            judging.judge(cases.draw(8, number), tally)
    whole, rows = Tally(), a.rows + b.rows
    whole.add(a)
    whole.add(b)
    assert (whole.rows, whole.cases) == (rows, 12)
    assert whole.margin == min(a.margin, b.margin)
    assert whole.statuses == a.statuses + b.statuses
