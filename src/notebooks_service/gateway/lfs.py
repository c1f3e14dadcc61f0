"""Git LFS between a server and the forge; called by ``gateway/app.py``.

Not carried yet. git-lfs is told so in its own format, which it shows to the person:
https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md#response-errors
"""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

SENTENCE = (
    "Files in Git LFS cannot be fetched or pushed from a notebook server yet; the rest of the"
    " repository can."
)


def refuse_lfs() -> Response:
    return JSONResponse(
        {"message": SENTENCE}, status_code=501, media_type="application/vnd.git-lfs+json"
    )
