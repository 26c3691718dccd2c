"""The laws of a certificate, as functions that raise when one is broken. Good engines pass; broken ones must not."""

import mpmath
import torch

import oracles
from asking import attend
from constants import flushing
from tailbound import Status


def oracle_options(options):
    options = dict(options)
    mask = options.pop("attn_mask", None)
    if mask is not None:
        options["visible" if mask.dtype is torch.bool else "bias"] = mask
    return options


def check_certificate(case, impl, flush=False):
    """tv >= tail mass and output_error >= |output - exact attention|, both to 60 digits; tv <= epsilon.

    Returns the largest (true tv / tv, true error / output_error): 1 is a bound that holds with nothing to spare. With
    `flush` the engine, and not the oracle, reads and writes denormals as zero.
    """
    with flushing(flush):
        answer = attend(
            case.query, case.key, case.value, epsilon=case.epsilon, return_kept=True, impl=impl, **case.options
        )
    certificate, closest_tv, closest_error = answer.certificate, 0.0, 0.0
    truth = oracles.attention(case.query, case.key, case.value, answer.kept, **oracle_options(case.options))
    judged = 0
    for index, tail, output in truth:
        judged += 1
        tv, error = mpmath.mpf(certificate.tv[index].item()), mpmath.mpf(certificate.output_error[index].item())
        away = oracles.distance(answer.output[index], output)
        assert tv >= tail, f"row {index}: tv {tv} below the truth {tail}"
        assert error >= away, f"row {index}: output_error {error} below the truth {away}"
        assert tv <= case.epsilon, f"row {index}: tv {tv} above epsilon {case.epsilon}"
        assert certificate.kept[index] == answer.kept[index].sum()
        assert certificate.status[index] in (Status.CERTIFIED, Status.DENSE)
        assert (certificate.status[index] == Status.DENSE) == (tail == 0)
        if tail > 0:
            closest_tv = max(closest_tv, float(tail / tv))
        if away > 0:
            closest_error = max(closest_error, float(away / error))
    assert int((certificate.status == Status.EMPTY).sum()) == certificate.tv.numel() - judged
    return closest_tv, closest_error
