"""How large a project is, as GitLab tells it to people from Reporter on; called by ``routes_projects``."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from notebooks_service.forge.git_process import git
from notebooks_service.forge.lfs_models import LfsLink, LfsObject


def sizes_of(session: Session, project_id: int, repository: Path) -> dict[str, int]:
    """Sizes in bytes; GitLab's other fields are of things that this forge does not count.

    https://docs.gitlab.com/api/projects/#retrieve-a-project
    """
    counted = git(repository, "count-objects", "-v").decode().splitlines()
    numbers = {key: int(value) for key, _, value in (line.partition(": ") for line in counted)}
    size = (numbers["size"] + numbers["size-pack"]) * 1024
    large = session.scalar(
        select(func.coalesce(func.sum(LfsObject.size), 0))
        .join(LfsLink, LfsLink.oid == LfsObject.oid)
        .where(LfsLink.project_id == project_id)
    )
    return {
        "storage_size": size + int(large or 0),
        "repository_size": size,
        "lfs_objects_size": int(large or 0),
    }
