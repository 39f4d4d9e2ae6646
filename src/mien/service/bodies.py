"""The pictures in the body of a request: multipart, or JSON with base64. In memory, never in a file."""

import base64
import binascii
from functools import partial
from typing import Any

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from mien.service.limits import Refused
from mien.service.schema import Upload

Pictures = list[tuple[str, bytes]]


def pictures_in(body: bytes, content_type: str, limit: int) -> Pictures:
    """The pictures and their names, 1 to `limit` of them. Raises Refused."""
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        pictures = _multipart(body, options.get(b"boundary", b""), limit)
    elif kind == b"application/json":
        pictures = _json(body, limit)
    else:
        raise Refused(415, "unsupported_type", "send multipart/form-data or application/json")
    if not pictures:
        raise Refused(422, "no_pictures", "no picture in the request")
    return [(_writable(name) or f"picture {number}", data) for number, (name, data) in enumerate(pictures, 1)]


def _multipart(body: bytes, boundary: bytes, limit: int) -> Pictures:
    """Every part with a file name is a picture; the others are passed over.

    starlette would do it, but spools what is larger than a megabyte into a temporary file.
    """
    if not boundary:
        raise Refused(422, "bad_body", "multipart without a boundary")
    files: list[File] = []
    others: list[Field] = []
    ends: list[bool] = []

    def keep(kept: list[Any], most: int, part: Any) -> None:
        kept.append(part)
        if len(kept) > most:
            raise _too_many(limit)

    try:
        parser = FormParser(
            "multipart/form-data",
            partial(keep, others, limit + 16),
            partial(keep, files, limit),
            lambda: ends.append(True),
            boundary,
            config={"MAX_MEMORY_FILE_SIZE": len(body)},
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refused(422, "bad_body", "not the multipart/form-data that it is said to be") from error
    if not ends:
        raise Refused(422, "bad_body", "the multipart body is cut short")
    return [((file.file_name or b"").decode(errors="replace"), file.file_object.getvalue()) for file in files]


def _json(body: bytes, limit: int) -> Pictures:
    # base64 has none of these: a body of nothing but brackets would take twenty times its size in memory
    if sum(map(body.count, (b"{", b"[", b",", b":"))) > 64 * (limit + 1):
        raise Refused(422, "bad_body", f'not {{"pictures": [{{"name": …, "data": base64}}]}}, {limit} pictures at most')
    try:
        uploads = Upload.model_validate_json(body).pictures
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise Refused(422, "bad_body", f"{where}: {first['msg']}" if where else first["msg"]) from error
    if len(uploads) > limit:
        raise _too_many(limit)
    pictures: Pictures = []
    for number, upload in enumerate(uploads):
        text = upload.data.partition(",")[2] if upload.data.startswith("data:") else upload.data
        try:
            pictures.append((upload.name or "", base64.b64decode(text, validate=True)))
        except (binascii.Error, ValueError) as error:
            raise Refused(422, "bad_body", f"pictures.{number}.data: not base64") from error
    return pictures


def _too_many(limit: int) -> Refused:
    return Refused(422, "too_many_pictures", f"more than {limit} pictures in a request")


def _writable(name: str) -> str:
    """A name that can be written anywhere."""
    return name[:255].encode(errors="replace").decode()
