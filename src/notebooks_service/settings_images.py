"""The settings of images and environments, and of the CI jobs that build them; part of ``Settings``."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, SecretStr


class ImageSettings(BaseModel):
    """Durations are in seconds, sizes in bytes."""

    image_job: str = Field(
        "image_build", description="Name of the CI job that builds a commit's image."
    )
    build_on_demand: bool = Field(
        True,
        description="Have the CI of a project build the image of a commit that nobody has built, when somebody who may push opens it.",
    )
    builds_per_project: int = Field(
        2,
        ge=1,
        description="How many environments of one project may be built on demand at once; who comes later waits for a turn.",
    )
    builds_per_person: int = Field(
        4,
        ge=0,
        description="How many environments one person may have built on demand at once, of whatever projects; 0 for no limit.",
    )
    on_demand_ci_file: Path | None = Field(
        None,
        description="CI configuration (YAML) of the commits that builds on demand are made of; it needs the job `image_job`. Without it, that job runs `notebooks image build`.",
    )
    webhook_secret: SecretStr = Field(
        SecretStr(""),
        description="Secret token of the forge's webhook for job and pipeline events, which saves most looks at builds; empty: no webhook, the hub polls.",
    )
    image_wait: float = Field(
        3600.0, gt=0, description="Longest wait in seconds for an image build that is on its way."
    )
    image_silence: float = Field(
        1800.0,
        gt=0,
        description="Longest silence in seconds in the log of an image build before it counts as timed out.",
    )
    image_poll: float = Field(
        1.0, gt=0, description="Seconds between two looks at a build; grows to ten times that."
    )
    default_requirements: tuple[str, ...] = Field(
        ("ipykernel",),
        description="Packages of the default environment of the `local` runtime, as pip requirements.",
    )
    rebuild_after: float = Field(
        7 * 24 * 3600.0,
        ge=0,
        description="Seconds after which an image is built anew if something in it may have changed that no file of the commit pins, such as the tag of its base; 0 for never.",
    )
    base_image: str = Field(
        "",
        description="Container image that the images of projects without a Dockerfile are built on, from the files that describe their Python environment; empty: no image is built for them.",
    )
    base_registries: tuple[str, ...] = Field(
        (),
        description="Registries that are asked, as nobody, which digest the tag of a base image has (`docker.io`, `host:port`, or `host=https://address/of/its/tokens`); a project's own registry is asked anyway. What another names is only built anew after `rebuild_after`.",
    )
    build_wait: float = Field(
        1800.0,
        gt=0,
        description="`local` only: longest time in seconds that building one environment may take.",
    )
    environment_size: int = Field(
        20 * 2**30,
        gt=0,
        description="`local` only: largest size in bytes of one environment.",
    )
