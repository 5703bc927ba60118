"""/v1/uploads/ID: a picture that was brought, as it came."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import FileResponse

from app.server.api import Serving
from ldm.errors import Code, LdmError

router = APIRouter(prefix="/v1")
# What a browser shows, by the first bytes. Anything else is told by no type that it would do something with.
SHOWN = {
    b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF87a": "image/gif", b"GIF89a": "image/gif",
    b"BM": "image/bmp",
}  # fmt: skip


@router.get("/uploads/{upload}", tags=["pictures"], summary="A picture that was brought")
def brought(service: Serving, upload: str) -> FileResponse:
    """As the file that it was."""
    if not service.uploads.has(upload):
        raise LdmError(Code.FILE, f"There is no upload {upload[:12]!r}.", "No picture has that id.", "Send it again.")
    path = service.uploads.folder / upload
    with path.open("rb") as file:
        head = file.read(12)
    kind = next((kind for magic, kind in SHOWN.items() if head.startswith(magic)), "application/octet-stream")
    return FileResponse(path, media_type="image/webp" if head[:4] == b"RIFF" and head[8:] == b"WEBP" else kind)
