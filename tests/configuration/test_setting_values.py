"""Values of settings."""

import pytest

from gkd.configuration.setting_values import Setting, check


def test_a_setting_for_nothing_accepts_none_only():
    check(None, Setting(none=True), "x")
    with pytest.raises(ValueError, match="x is 1: use None"):
        check(1, Setting(none=True), "x")
