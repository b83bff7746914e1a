"""A small random model and a runner, for all tests of this folder."""

from tests.infer.inference import model, model_dir, run  # noqa: F401
