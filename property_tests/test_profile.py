"""The profile that was asked for is the one in force."""

import os

from hypothesis import settings


def test_the_profile_is_loaded() -> None:
    name = os.environ.get("HYPOTHESIS_PROFILE", "ci")
    loaded, wanted = settings(), settings.get_profile(name)
    assert (loaded.deadline, loaded.derandomize, loaded.max_examples) == (None, name == "ci", wanted.max_examples)
    assert settings.get_profile("nightly").max_examples == 10 * settings.get_profile("ci").max_examples
    assert settings.get_profile("nightly").database is not None
