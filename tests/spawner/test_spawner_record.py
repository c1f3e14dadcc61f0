"""What the record of one launch knows of those before it."""

from __future__ import annotations

from dataclasses import replace

from notebooks_service.domain import Image, ImageOrigin, LaunchRecord
from notebooks_service.errors import NotFound
from notebooks_service.spawner import record as records
from notebooks_service.spawner.options import LaunchOptions

OPTIONS = LaunchOptions("g/p", "1" * 40, "main")
FIRST = Image("g/p:1", "sha256:1", ImageOrigin.COMMIT, "It was there.", {"tag": "g/p:1"})
DEFAULT = Image("default", None, ImageOrigin.DEFAULT, "Nothing was there.", {"cause": "no job"})


def test_the_image_of_the_first_launch_outlives_launches_that_fail_and_restarts() -> None:
    first = replace(records.begin(OPTIONS, None), image=FIRST)
    failed = records.failed(records.begin(OPTIONS, first), NotFound())
    assert (failed.had, failed.image) == (FIRST, None)
    later = records.begin(OPTIONS, failed)
    assert later.had == FIRST
    read = LaunchRecord.from_dict(later.to_dict())
    assert read == later
    in_default = records.begin(OPTIONS, replace(later, image=DEFAULT))
    assert in_default.had == FIRST


def test_a_record_of_before_knows_of_no_image() -> None:
    assert records.begin(OPTIONS, None).had is None
    assert records.begin(OPTIONS, replace(records.begin(OPTIONS, None), image=DEFAULT)).had is None
    old = records.begin(OPTIONS, None).to_dict()
    del old["had"]
    assert LaunchRecord.from_dict(old).had is None
