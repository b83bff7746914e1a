"""The fixture of the launch scripts' tests."""

from tests.launch.cloud import cloud  # noqa: F401
