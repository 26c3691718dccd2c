"""The product: `tv` and `output_error` are never below the truth. Engines that cheat are caught by the same laws."""

import pytest
import torch
from hypothesis import given, target

import tailbound
from asking import INDEX_DTYPES, INDEXES
from cases import SHAPES, Case, calls
from constants import round_to_nearest
from laws import check_certificate
from tailbound import Status
from tailbound.bounds import rounding
from tailbound.engine import cut, finish, logits, partial

IMPLS = ("reference", "torch")


@pytest.mark.parametrize("impl", IMPLS)
@given(case=calls())
def test_certificates_are_never_below_the_truth(impl, case):
    tv, error = check_certificate(case, impl)
    target(tv, label="true tv / tv")
    target(error, label="true error / output_error")


@pytest.mark.parametrize("impl", INDEXES)
@given(case=calls(dtypes=INDEX_DTYPES))
def test_certificates_of_an_index_are_never_below_the_truth(impl, case):
    tv, error = check_certificate(case, impl)
    target(tv, label="true tv / tv")
    target(error, label="true error / output_error")


@given(case=calls())
def test_torch_equals_reference(case):
    a, b = (
        tailbound.attention(*case[:3], epsilon=case.epsilon, return_kept=True, impl=impl, **case.options)
        for impl in IMPLS
    )
    assert torch.equal(a.kept, b.kept)
    assert torch.equal(a.certificate.status, b.certificate.status)
    assert torch.equal(a.certificate.kept, b.certificate.kept)
    torch.testing.assert_close(a.certificate.tv, b.certificate.tv, rtol=1e-9, atol=0)
    step = torch.finfo(case.query.dtype).eps * float(b.output.abs().max())
    torch.testing.assert_close(a.output, b.output, rtol=0, atol=max(step, 1e-300))
    # Beside truncation and the cast, the bound holds the implementation's own float64 roundings.
    own = 1e-11 * float(case.value.double().abs().max())
    torch.testing.assert_close(a.certificate.output_error, b.certificate.output_error, rtol=1e-3, atol=own)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("blocks", [1, 3, 7])
def test_block_sizes_do_not_matter(impl, blocks, monkeypatch):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 8) * 2, torch.randn(2, 2, 50, 8), torch.randn(2, 2, 50, 3)
    whole = tailbound.attention(q, k, v, epsilon=0.05, is_causal=True, return_kept=True, impl="reference")
    monkeypatch.setattr("tailbound.engine.blocked.BLOCK_WIDENED", blocks * 2 * 2 * 8)  # batch, KV heads, width
    monkeypatch.setattr("tailbound.engine.blocked.BLOCK_LOGITS", 50 * 4 * blocks)
    parts = tailbound.attention(q, k, v, epsilon=0.05, is_causal=True, return_kept=True, impl=impl)
    assert torch.equal(whole.kept, parts.kept)
    torch.testing.assert_close(whole.output, parts.output)
    torch.testing.assert_close(whole.certificate.tv, parts.certificate.tv, rtol=1e-9, atol=0)
    torch.testing.assert_close(whole.certificate.output_error, parts.certificate.output_error, rtol=1e-3, atol=1e-11)
    assert (parts.certificate.tv <= 0.05).all()


@pytest.mark.parametrize("impl", [*IMPLS, *INDEXES])
@pytest.mark.parametrize("kind", sorted(SHAPES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.25, -30.0])
def test_every_kind_of_input_in_every_dtype(impl, kind, dtype, scale):
    gen = torch.Generator().manual_seed(7)
    q, k, v = (torch.randn(1, h, n, 16, generator=gen, dtype=torch.float64) for h, n in ((2, 2), (1, 20), (1, 20)))
    q, k, v = (x.to(dtype) for x in SHAPES[kind](q, k, v, gen))
    check_certificate(Case(q, k, v, 0.05, {"scale": scale}), impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_flushed_denormals_stay_inside_the_certificate(impl):
    tiny = 2.0**-130  # a float32 denormal
    q = torch.full((1, 1, 1, 4), 2.0**127)
    k = torch.tensor([[0.0], [tiny], [-tiny], [2 * tiny]]).expand(4, 4).reshape(1, 1, 4, 4).clone()
    v = torch.tensor([[tiny], [1.0], [2.0], [-1.0]]).reshape(1, 1, 4, 1)
    check_certificate(Case(q, k, v, 0.3, {"scale": 1.0}), impl, flush=True)


@pytest.mark.parametrize("precision", ["medium", "high", "highest"])
def test_lowered_matmul_precision_does_not_reach_a_certificate(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            check_certificate(Case(*(torch.randn(1, 1, 9, 16) * 2 for _ in range(3)), 0.1, {}), "torch")
    finally:
        torch.set_float32_matmul_precision(before)


def test_unread_mass_never_underflows_to_nothing():
    q = torch.tensor([1e4]).reshape(1, 1, 1, 1)
    k = torch.tensor([1.0, -1.0, -1.0]).reshape(1, 1, 3, 1)
    answer = tailbound.attention(q, k, torch.ones(1, 1, 3, 1), epsilon=0.01, scale=1.0)
    assert answer.certificate.kept.item() == 1
    assert 0 < answer.certificate.tv.item() < 1e-300


# Negative controls: the laws above must catch an engine that rounds to nearest, and one that forgets a term.

CONTROL_SEEDS = range(40)


def _control_case(seed, dtype=torch.float32, epsilon=0.3):
    gen = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 1, n, 8, generator=gen).to(dtype) for n in (2, 12, 12))
    return Case(q, k, v, epsilon, {})


def _caught(cases, impl, flush=False):
    caught = 0
    for case in cases:
        try:
            check_certificate(case, impl, flush)
        except AssertionError as error:
            caught += "below the truth" in str(error)
    return caught


@pytest.mark.parametrize("impl", IMPLS)
def test_control_rounding_to_nearest_is_caught(impl, monkeypatch):
    cases = [_control_case(seed) for seed in CONTROL_SEEDS]
    assert _caught(cases, impl) == 0
    round_to_nearest(monkeypatch)
    monkeypatch.setattr(rounding, "EXP_RELATIVE", 0.0)
    for module in (cut, partial):
        monkeypatch.setattr(module, "WEIGHT_ROUNDING", 0.0)
    monkeypatch.setattr("tailbound.engine.reference.WEIGHT_ROUNDING", 0.0)
    assert _caught(cases, impl) >= len(cases) // 4


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_control_output_error_without_its_rounding_term_is_caught(impl, dtype, monkeypatch):
    cases = [_control_case(seed, dtype, epsilon=0.0) for seed in CONTROL_SEEDS]
    assert _caught(cases, impl) == 0
    monkeypatch.setattr(rounding, "unit_roundoff", lambda dtype: 0.0)
    monkeypatch.setattr(rounding, "smallest_step", lambda dtype: 0.0)
    assert _caught(cases, impl) == len(cases)


@pytest.mark.parametrize("impl", IMPLS)
def test_control_a_forgotten_logit_error_is_caught(impl, monkeypatch):
    """Large logits in float64: their rounding moves the tail mass by far more than one unit."""
    gen = torch.Generator().manual_seed(3)
    cases = []
    for _ in CONTROL_SEEDS:
        q, k, v = (torch.randn(1, 1, n, 64, generator=gen, dtype=torch.float64) for n in (1, 8, 8))
        k = k[:, :, :1] * 1e5 + k * 1e-3  # logits of 1e6 that differ by about 0.1
        cases.append(Case(q * 10, k, v, 0.4, {}))
    assert _caught(cases, impl) == 0
    monkeypatch.setattr(logits, "dot_error", lambda scale, width, q, k: torch.zeros_like(q * k))
    assert _caught(cases, impl) >= len(cases) // 8


@pytest.mark.parametrize("impl", IMPLS)
def test_control_a_tail_that_underflows_is_caught(impl, monkeypatch):
    q = torch.tensor([1e3]).reshape(1, 1, 1, 1)
    k = torch.tensor([1.0, -1.0]).reshape(1, 1, 2, 1)
    case = Case(q, k, torch.ones(1, 1, 2, 1), 0.5, {"scale": 1.0})
    assert _caught([case], impl, flush=True) == 0
    monkeypatch.setattr(rounding, "TINY", 0.0)
    assert _caught([case], impl, flush=True) == 1


def test_status_words_are_a_diagnosis_and_a_remedy():
    for status in Status:
        assert status.diagnosis.endswith(".")
        assert status.remedy.endswith(".")


def test_the_parts_of_the_output_error_are_needed(monkeypatch):
    """Truncation towards far values: without `tv * (|out - c| + rho)` nothing is left to pay for it."""
    gen = torch.Generator().manual_seed(1)
    q, k = torch.randn(1, 1, 1, 8, generator=gen), torch.randn(1, 1, 12, 8, generator=gen)
    case = Case(q, k, torch.randn(1, 1, 12, 4, generator=gen) * 100, 0.4, {})
    check_certificate(case, "torch")
    original = finish.output_error
    monkeypatch.setattr(finish, "output_error", lambda output, tv, *rest: original(output, torch.zeros_like(tv), *rest))
    with pytest.raises(AssertionError, match="output_error"):
        check_certificate(case, "torch")


def _flushed_case():
    """Logits that live in float32 denormals: read as zero, four different keys look the same."""
    tiny = 2.0**-130
    q = torch.full((1, 1, 1, 4), 2.0**127)
    k = torch.tensor([[0.0], [3 * tiny], [-3 * tiny], [2 * tiny]]).expand(4, 4).reshape(1, 1, 4, 4).clone()
    return Case(q, k, torch.randn(1, 1, 4, 2, generator=torch.Generator().manual_seed(0)), 0.5, {"scale": 1.0})


@pytest.mark.parametrize("impl", IMPLS)
def test_control_flushed_inputs_are_caught(impl, monkeypatch):
    assert _caught([_flushed_case()], impl, flush=True) == 0
    monkeypatch.setattr(rounding, "INPUT_FLUSH", 0.0)
    assert _caught([_flushed_case()], impl, flush=True) == 1


@pytest.mark.parametrize("impl", IMPLS)
def test_control_a_forgotten_cap_error_is_caught(impl, monkeypatch):
    """A cap of 1e6 over logits near it: the cap's own rounding is then most of the error."""
    gen = torch.Generator().manual_seed(5)
    cases = []
    for _ in CONTROL_SEEDS:
        k = 1.0 + torch.randn(1, 1, 8, 1, generator=gen, dtype=torch.float64) * 1e-7
        cases.append(Case(torch.ones_like(k[:, :, :1]), k, torch.ones_like(k), 0.4, {"scale": 1e6, "softcap": 1e6}))
    assert _caught(cases, impl) == 0
    real = logits._cap
    monkeypatch.setattr(logits, "_cap", lambda s, error, cap: (real(s, error, cap)[0], error.clamp_max(2 * cap)))
    monkeypatch.setattr(logits, "dot_error", lambda scale, width, q, k: torch.zeros_like(q * k))
    assert _caught(cases, impl) >= len(cases) // 8


@pytest.mark.parametrize("impl", IMPLS)
def test_control_a_forgotten_bias_error_is_caught(impl, monkeypatch):
    """Biases of 1e9 that differ by about 1: adding them rounds by 1e-7."""
    gen = torch.Generator().manual_seed(6)
    cases = []
    for _ in CONTROL_SEEDS:
        q, k, v = (torch.randn(1, 1, n, 4, generator=gen, dtype=torch.float64) for n in (1, 8, 8))
        bias = 1e9 + torch.randn(1, 1, 1, 8, generator=gen, dtype=torch.float64)
        cases.append(Case(q, k, v, 0.4, {"attn_mask": bias}))
    assert _caught(cases, impl) == 0
    monkeypatch.setattr(logits, "_bias_error", lambda s, error: error)
    assert _caught(cases, impl) >= len(cases) // 8
