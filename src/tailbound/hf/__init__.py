"""transformers: certified decoding for models that are already there.

>>> import tailbound
>>> with tailbound.hf.certify(model, epsilon=0.01) as ledger:  # doctest: +SKIP
...     model.generate(**inputs, max_new_tokens=32)
>>> ledger.assert_within(0.01)  # doctest: +SKIP
"""

from tailbound.hf.budget import Budget
from tailbound.hf.cache import CertifiedCache
from tailbound.hf.certifying import certify
from tailbound.hf.interface import install
from tailbound.hf.layer import CertifiedLayer
from tailbound.hf.ledger import CertificateError, Ledger
from tailbound.hf.session import Observation
from tailbound.hf.sliding import CertifiedSlidingLayer
from tailbound.hf.summary import HeadSummary, LayerSummary, Spread, Summary

__all__ = [
    "Budget",
    "CertificateError",
    "CertifiedCache",
    "CertifiedLayer",
    "CertifiedSlidingLayer",
    "HeadSummary",
    "LayerSummary",
    "Ledger",
    "Observation",
    "Spread",
    "Summary",
    "certify",
    "install",
]
