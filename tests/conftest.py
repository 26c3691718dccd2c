"""Test set-up: beartype checks shapes on the floors that state them, hypothesis has three profiles, pages a browser."""

import os
import shutil

import pytest
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


@pytest.fixture(scope="module")
def chromium():
    """A browser of Playwright's; a test that asks for one is skipped where there is none."""
    driver = pytest.importorskip("playwright.sync_api", reason="no playwright; `make setup` installs it")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium; `make browser` installs one on Debian")
    with driver.sync_playwright() as started:
        try:
            browser = started.chromium.launch(executable_path=path)
        except driver.Error as error:
            pytest.skip(f"{path} does not start: {error}")
        yield browser
        browser.close()
