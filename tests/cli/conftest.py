"""The fake verb, for all tests of this folder."""

from tests.fake_verb import fake_verb  # noqa: F401
