"""The process that a lease names."""

import json

from gkd.runs import lease_owner


def test_the_record_has_a_constant_length():
    """So that a beat needs no room on the disk, and a reader never sees half of one."""
    owner = lease_owner.Owner.this_process()
    assert len(owner.record(0)) == len(owner.record(10**9)) == 1024
    assert lease_owner.Owner.parse(owner.record(5)) == owner
    assert json.loads(owner.record(5))["beat"] == 5
