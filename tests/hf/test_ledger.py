"""The ledger against a plain list of every row: what it says of all certificates is exact, also of those it let go."""

import json
import math
import re
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from tailbound import Certificate, Status
from tailbound.hf import Budget, CertificateError, Ledger, ledger
from tailbound.hf.rows import ROW
from tailbound.hf.tally import MEASURES, RANK_ERROR

TV = (0.0, 0.001, 0.01, 0.02, 0.02, 0.3, 1.0, math.nan)


def certificate(random, shape, tv=TV):
    status = random.integers(0, len(Status), shape)
    return Certificate(
        torch.from_numpy(random.choice(tv, shape)),
        torch.from_numpy(random.choice((0.0, 1.5, random.random(), math.inf), shape)),
        torch.from_numpy(random.integers(0, 50, shape).astype(np.int32)),
        torch.from_numpy(status.astype(np.uint8)),
    )


def listed(step, layer, issued, visible):
    """The rows of a call, one by one."""
    for place in np.ndindex(tuple(issued.tv.shape)):
        batch, head, query = place
        tv, error, kept, status = (column[place].item() for column in issued)
        yield step, layer, batch, head, query, tv, error, kept, visible[place].item(), status


@st.composite
def histories(draw):
    """A ledger that wrapped or did not, read now and then, and the list of all its rows."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    chunk, last = draw(st.sampled_from((1, 7, 64))), draw(st.sampled_from((0, 1, 5, 40, 10_000)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "CHUNK_ROWS", chunk)
        kept = Ledger(last)
    rows, tv = [], TV[: draw(st.integers(3, len(TV)))]
    for _ in range(draw(st.integers(0, 12))):
        layer = draw(st.sampled_from((0, 1, 5)))
        shape = draw(st.tuples(st.integers(0, 2), st.just(2 + layer), st.integers(0, 3)))
        issued, seen = certificate(random, shape, tv), random.integers(0, 60, (shape[0], 1, shape[2]))
        step = kept.next_step(layer)
        kept.record(step, layer, issued, torch.from_numpy(seen))
        rows += listed(step, layer, issued, np.broadcast_to(seen, shape))
        if draw(st.booleans()):
            kept.rows()
    return kept, np.array(rows, ROW), last


@given(histories())
def test_the_latest_rows_are_held_whole_in_the_order_of_issue(history):
    kept, rows, last = history
    held = kept.rows()
    assert len(kept) == rows.size
    assert held.tobytes() == rows[max(0, rows.size - last) :].tobytes()


@given(histories())
def test_counts_and_extremes_are_those_of_all_rows(history):
    kept, rows, _ = history
    assert kept.statuses() == {status: int((rows["status"] == status).sum()) for status in Status}
    parts = kept.summary(by_head=True).parts
    assert [(part.layer, part.head) for part in parts] == sorted(set(rows[["layer", "head"]].tolist()))
    for part in parts:
        own = rows[(rows["layer"] == part.layer) & (rows["head"] == part.head)]
        assert part.certificates == own.size
        assert part.statuses == {status: int((own["status"] == status).sum()) for status in Status}
        for measure in MEASURES:
            values, spread = measured(own, measure), getattr(part, measure)
            if not values.size:
                assert all(map(math.isnan, spread))
                continue
            assert (spread.minimum, spread.maximum) == (values.min(), values.max())
            assert spread.mean == pytest.approx(values.mean(), rel=1e-12)
            # So few rows that the sketch has them all.
            assert (spread.median, spread.p95) == tuple(np.quantile(values, (0.5, 0.95), method="inverted_cdf"))


@given(histories())
def test_layers_are_summed_up_over_all_rows(history):
    kept, rows, _ = history
    layers = kept.by_layer()
    assert [layer.layer for layer in layers] == sorted(set(rows["layer"].tolist()))
    for layer in layers:
        own = rows[rows["layer"] == layer.layer]
        seeing = own[own["visible"] > 0]
        assert layer.certificates == own.size
        assert (layer.tv_max, layer.output_error_max) == (
            measured(own, "tv").max(),
            measured(own, "output_error").max(),
        )
        if seeing.size:
            assert layer.kept_share == pytest.approx(measured(own, "kept_share").mean(), rel=1e-12)


@given(histories(), st.sampled_from((0.0, 0.001, 0.02, 0.5)), st.sampled_from((0.0, 0.02, 0.9)))
def test_the_verdict_is_about_every_row_ever_issued(history, default, other):
    kept, rows, last = history
    budget = Budget(default, {5: other}, {(0, 1): other})
    special = (rows["layer"] == 5) | ((rows["layer"] == 0) & (rows["head"] == 1))
    limits = np.where(special, other, default)
    over = ~(rows["tv"] <= limits)
    if not over.any():
        kept.assert_within(budget)
        return
    with pytest.raises(CertificateError) as caught:
        kept.assert_within(budget)
    found = re.match(r"(at least )?(\d+) of (\d+) certificates", str(caught.value))
    count = int(found[2])
    assert int(found[3]) == rows.size
    assert 1 <= count <= over.sum()
    if rows.size <= last:
        assert not found[1]
        assert count == over.sum()
    else:
        assert found[1]
    worst = rows[np.where(over, measured(rows, "tv") - limits, -1).argmax()]
    place = ", ".join(f"{name} {worst[name]}" for name in ("layer", "step", "batch", "head", "query"))
    assert f"at {place}: {Status(worst['status']).name}" in str(caught.value)


def measured(rows, measure):
    if measure == "kept_share":
        rows = rows[rows["visible"] > 0]
        return rows["kept"] / rows["visible"]
    values = rows[measure].astype(float)
    return np.where(np.isnan(values), np.inf, values)


def steady(tv, heads=9):
    """A certificate of one decode step in which every head has the same tv."""
    shape = (1, heads, 1)
    zeros = torch.zeros(shape, dtype=torch.uint8)
    return Certificate(
        torch.full(shape, tv, dtype=torch.float64),
        torch.full(shape, 2 * tv, dtype=torch.float64),
        zeros.int() + 5,
        zeros,
    )


def test_a_violation_that_is_no_longer_held_still_counts():
    kept = Ledger(last=90)
    for step in range(2000):
        kept.record(step, 4, steady(0.2 if step == 3 else 0.005), 50)
    assert kept.rows()["step"].min() == 1990
    with pytest.raises(
        CertificateError, match=r"at least 9 of 18000 .* tv 0.2 against 0.01 at layer 4, step 3, .*head 0"
    ):
        kept.assert_within(0.01)
    kept.assert_within(0.2)


def test_quantiles_keep_their_stated_rank_error_over_a_long_stream():
    random, kept, heads, steps = np.random.default_rng(0), Ledger(last=0), 60, 3000
    values = random.standard_cauchy((steps, heads)) ** 2
    zeros = torch.zeros(1, heads, 1, dtype=torch.uint8)
    for step in range(steps):
        tv = torch.from_numpy(values[step]).reshape(1, heads, 1)
        kept.record(step, 0, Certificate(tv, tv, zeros.int(), zeros), 1)
    medians = [kept.quantiles("tv", [0.5], layer=0, head=head)[0] for head in range(heads)]
    ranks = (values <= medians).mean(axis=0)
    # Each is within with 99% confidence: 7 of 60 outside would happen once in 250,000 runs.
    assert (abs(ranks - 0.5) > RANK_ERROR).sum() < 7
    merged = kept.quantiles("tv", [0.01, 0.5, 0.99])
    assert np.abs([(values <= value).mean() for value in merged] - np.array([0.01, 0.5, 0.99])).max() < 3 * RANK_ERROR


def test_two_threads_record_while_a_third_reads():
    kept, calls, done = Ledger(last=100), 3000, threading.Event()

    def write(layer):
        for call in range(calls):
            kept.record(kept.next_step(layer), layer, steady(call / calls, heads=2 + layer), 50)
            kept.record_exact(layer, "a reason")

    def read():
        while not done.is_set():
            assert kept.rows().size <= 100
            kept.summary()

    writers, reader = [threading.Thread(target=write, args=(layer,)) for layer in (0, 1)], threading.Thread(target=read)
    for thread in (*writers, reader):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert len(kept) == 5 * calls
    assert kept.exact == Counter({(0, "a reason"): calls, (1, "a reason"): calls})
    for part in kept.summary(by_head=True).parts:
        assert (part.certificates, part.tv.minimum, part.tv.maximum) == (calls, 0.0, (calls - 1) / calls)
        assert part.tv.mean == pytest.approx((calls - 1) / calls / 2)


def test_quantiles_of_nothing_and_what_is_refused():
    kept = Ledger()
    assert math.isnan(kept.quantiles("tv", [0.5])[0])
    with pytest.raises(ValueError, match="measure='mass'; allowed: tv, output_error, kept, kept_share"):
        kept.quantiles("mass", [0.5])
    with pytest.raises(ValueError, match=r"a rank is a number in \[0, 1\]"):
        kept.quantiles("tv", [50])
    with pytest.raises(ValueError, match="last=-1 certificates cannot be held"):
        Ledger(last=-1)


def test_a_summary_reads_as_a_table_and_names_what_was_exact_once():
    kept = Ledger()
    for layer in (0, 1, 2, 7):
        kept.record(0, layer, steady(0.004), 50)
        kept.record_exact(layer, "more than 16 queries (prefill)")
    text = str(kept.summary())
    assert "36 certificates, 36 held whole" in text
    assert "0.004" in text
    assert text.count("prefill") == 1
    assert "0-2, 7" in text
    assert str(kept.summary(by_head=True)).count("0.004") > 3 * 36 - 1


def test_parquet_gives_back_the_rows_and_says_what_it_is(tmp_path):
    kept, random = Ledger(last=50), np.random.default_rng(0)
    for step in range(8):
        kept.record(step, step % 2, certificate(random, (1, 3, 4)), 60)
    kept.record_exact(None, "the module has no layer_idx")
    path, beside = kept.to_parquet(tmp_path / "run.parquet")
    table, rows = parquet.read_table(path), kept.rows()
    assert table.column_names == [*(name for name in ROW.names if name != "status"), "status"]
    for name in table.column_names[:-1]:
        assert np.array_equal(table[name].to_numpy(), rows[name], equal_nan=name == "tv")
    assert table["status"].to_pylist() == [Status(status).name for status in rows["status"]]
    heads = parquet.read_table(beside).to_pylist()
    assert sum(head["certificates"] for head in heads) == len(kept) == 96
    for head, part in zip(heads, kept.summary(by_head=True).parts, strict=True):
        assert (head["layer"], head["head"], head["dense"]) == (part.layer, part.head, part.statuses[Status.DENSE])
        assert head["tv_max"] == part.tv.maximum
    for file in (path, beside):
        metadata = parquet.read_schema(file).metadata
        assert metadata[b"schema"] == b"tailbound.ledger/1"
        assert json.loads(metadata[b"tailbound"]) == {
            "schema": "tailbound.ledger/1",
            "rank_error": RANK_ERROR,
            "issued": 96,
            "held": 50,
            "exact": [[None, "the module has no layer_idx", 1]],
        }


@pytest.mark.parametrize("there", ["run.parquet", "run.heads.parquet"])
def test_parquet_overwrites_only_when_asked(tmp_path, there):
    (tmp_path / there).write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=f"{there} exists; .* overwrite=True"):
        Ledger().to_parquet(tmp_path / "run.parquet")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [(there, b"mine")]
    path, _ = Ledger().to_parquet(tmp_path / "run.parquet", overwrite=True)
    assert parquet.read_table(path).num_rows == 0
