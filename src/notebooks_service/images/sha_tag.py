"""Tags a commit's sha with the image of its environment, in the project's registry.

Called by ``images/watch.py`` behind a launch, with the right of whoever launches. Blocking. Which
registry that is, the forge says; it gets a token of the forge's for this one repository, and nothing
of the person's.
"""

from __future__ import annotations

import httpx

from notebooks_service.domain import Image, Project
from notebooks_service.errors import InvalidRequest
from notebooks_service.gitlab.forge import Forge
from notebooks_service.images.registry import RegistryClient, registry_of

TIMEOUT = 10.0
SCOPES = frozenset({"api", "write_registry"})
"""OAuth scopes with one of which a person's token may push images.
https://docs.gitlab.com/security/tokens/access_token_scopes/"""


def tag_commit(forge: Forge, project: Project, sha: str, image: Image) -> bool:
    """Gives the commit a tag of its own, unless it has one by now; whether it did.

    Raises ``Forbidden`` or ``RegistryUnavailable`` where it is not let, and what the forge does.
    """
    try:
        url, repository = registry_of(image.reference.rpartition(":")[0])
    except InvalidRequest:
        return False
    if repository != project.path.lower() or image.digest is None:
        return False  # another project's
    with httpx.Client(timeout=TIMEOUT, follow_redirects=False) as http:
        registry = RegistryClient(url, http=http, sign=forge.registry.token)
        found = registry.manifest(repository, image.digest)
        if found is None or registry.head(repository, sha) is not None:
            return False
        registry.put(repository, sha, found)
    return True
