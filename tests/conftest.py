"""Test set-up: shapes are checked by beartype on the floors that state them, and hypothesis has two profiles."""

import os

import torch
from hypothesis import HealthCheck, Phase, settings
from jaxtyping import install_import_hook

# Not the doors (api, check): what they say to arguments of the wrong type is their own, and tested.
CHECKED = ["tailbound.theory", "tailbound.bounds"]
CHECKED += [
    f"tailbound.engine.{room}" for room in ("blocked", "cut", "finish", "logits", "partial", "reference", "values")
]
install_import_hook(CHECKED, "typechecks.check")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

_common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("ci", derandomize=True, max_examples=60, **_common)
# The same examples, without the search for smaller ones: a mutant is dead at the first.
_found = (Phase.explicit, Phase.generate, Phase.target)
settings.register_profile("mutants", derandomize=True, max_examples=60, phases=_found, **_common)
settings.register_profile("fuzz", max_examples=4000, print_blob=True, **_common)
settings.load_profile(os.environ.get("TAILBOUND_PROFILE", "ci"))
