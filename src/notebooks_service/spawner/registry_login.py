"""With which login an image is pulled from the forge's registry: the person's own, or a deploy token's.

Called by the launch, once for each pull. What a GitLab takes as login differs between its versions, so the
setting `registry_login` says it. https://docs.gitlab.com/user/project/deploy_tokens/
"""

from __future__ import annotations

from notebooks_service.domain import Project
from notebooks_service.errors import NotFound, RegistryLoginRefused, SignInExpired
from notebooks_service.gitlab.forge import Forge
from notebooks_service.settings import Settings


def pull_token(settings: Settings, forge: Forge, project: Project, repository: str) -> str | None:
    """A registry's token that pulls ``repository`` (a name without a host); None if the person may not.

    A deploy token reaches more than the person does. It is used only for a repository of the launch's own
    project that the forge shows to this person; for any other the person's own login is. Raises
    ``RegistryLoginRefused``; ``SignInExpired`` where the person's own token was refused. Blocking.
    """
    scope = f"repository:{repository}:pull"
    login = None
    if settings.registry_login == "deploy_token" and forge.registry.shows(project, repository):
        secret = settings.registry_deploy_secret.get_secret_value()
        login = (settings.registry_deploy_user, secret)
    try:
        token, _ = forge.registry.token(scope, login)
    except (NotFound, SignInExpired) as error:
        if login is not None:  # the forge has just shown the repository to this person
            raise RegistryLoginRefused from None
        if isinstance(error, SignInExpired):
            raise
        return None
    return token
