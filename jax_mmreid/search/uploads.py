"""Pictures and captions of a request: a multipart form, read into memory within limits."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from jax_mmreid.search.answers import RefusedError
from jax_mmreid.search.engine import Query, Upload
from jax_mmreid.search.pictures import shown

CAPTION = "caption_"  # and a modality: the field of its caption, as the column of a manifest is called
MAX_CAPTION = 8192  # bytes
SPARE = 8  # parts beyond those of a correct form that are read, to name what is wrong with them
PATIENCE = 60.0  # seconds that an upload may take


async def read_query(request: Any, modalities: Sequence[str], captions: Sequence[str], max_bytes: int) -> Query:
    """The query in the body of a Starlette request.

    A file for each modality is in the field of its name, and its caption in `CAPTION` and the name. Nothing is written
    to the disk. Raises RefusedError for a body of another form or of more than `max_bytes`, for fields that the model
    does not read, and for an upload that is cut off or takes longer than `PATIENCE`.
    """
    from starlette.formparsers import MultiPartException, MultiPartParser
    from starlette.requests import ClientDisconnect

    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RefusedError(415, "expected multipart/form-data with a file for each modality")
    most = len(modalities) + len(captions) + SPARE
    stream = _limited(request, max_bytes)
    parser = MultiPartParser(request.headers, stream, max_files=most, max_fields=most, max_part_size=MAX_CAPTION)
    parser.spool_max_size = max_bytes + 1  # never a file on the disk
    try:
        async with asyncio.timeout(PATIENCE):
            form = await parser.parse()
    except TimeoutError as error:
        raise RefusedError(408, f"the upload took longer than {PATIENCE:.0f} seconds") from error
    except (MultiPartException, ClientDisconnect) as error:
        raise RefusedError(400, f"the form cannot be read ({str(error) or 'it was cut off'})") from error
    pictures, texts = {}, {}
    for field, value in form.multi_items():
        known, given = (captions, texts) if field.startswith(CAPTION) else (modalities, pictures)
        modality = field.removeprefix(CAPTION)
        if modality not in known:
            fields = [*modalities, *(CAPTION + m for m in captions)]
            raise RefusedError(422, f"there is no field {shown(field[:80])!r}; the model reads {', '.join(fields)}")
        if modality in given:
            raise RefusedError(422, f"{field} is given twice; send one")
        given[modality] = _caption(field, value) if known is captions else await _picture(field, value)
    pictures, texts = ({m: x[m] for m in names if x.get(m)} for names, x in ((modalities, pictures), (captions, texts)))
    return Query(pictures, texts)


def _caption(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise RefusedError(422, f"{field} is a file; send the sentence itself")
    return value.strip()


async def _picture(field: str, value: Any) -> Upload | None:
    """The file of a field; None for a field that was left empty."""
    if isinstance(value, str):
        if value:
            raise RefusedError(422, f"{field} is not a file; send a picture")
        return None
    data = await value.read()
    if value.filename and not data:
        raise RefusedError(422, f"{field} {shown(value.filename)!r} is an empty file; send a picture")
    return Upload(shown(value.filename or "picture"), data) if data else None


async def _limited(request: Any, max_bytes: int) -> AsyncIterator[bytes]:
    """The body; raises RefusedError once it is too large, at once where the header says so."""
    refusal = RefusedError(413, f"the request has more than {max_bytes / (1 << 20):g} MiB; send smaller pictures")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise refusal
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise refusal
        yield chunk


def form_schema(modalities: Sequence[str], captions: Sequence[str]) -> dict:
    """The OpenAPI schema of the body that `read_query` reads."""
    picture = {"type": "string", "format": "binary"}
    fields = {m: picture | {"description": f"the {m} picture"} for m in modalities}
    fields |= {
        CAPTION + m: {"type": "string", "description": f"a sentence that describes the {m} picture"} for m in captions
    }
    body = {"type": "object", "properties": fields, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": body}}}}
