"""The variables that people gave to a project and to the groups that it lies in; for ``ci_*``.

https://docs.gitlab.com/ci/variables/#cicd-variable-precedence
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from notebooks_service.forge import access, ci_variables
from notebooks_service.forge.ci_models import GroupVariable, Variable
from notebooks_service.forge.ci_variables import OwnVariable
from notebooks_service.forge.models import Project


def for_project(
    session: Session, project: Project, *, protected: bool, environment: str = ""
) -> list[OwnVariable]:
    """What a job of this project sees; a later one of the same key wins.

    ``protected``: whether the job's ref is. ``environment`` is the name that the job gives, if any.
    """
    found: list[OwnVariable] = []
    # The outermost group first: nearer ones win.
    for namespace in reversed(access.ancestors(session, project.namespace)):
        of_group = select(GroupVariable).where(GroupVariable.namespace_id == namespace.id)
        rows = session.scalars(of_group.order_by(GroupVariable.id)).all()
        found += ci_variables.visible(rows, protected=protected, environment=environment)
    own = select(Variable).where(Variable.project_id == project.id).order_by(Variable.id)
    found += ci_variables.visible(
        session.scalars(own).all(), protected=protected, environment=environment
    )
    return found
