"""Faces in an app of your own: `pip install "mien[serve]"`, then `uvicorn --app-dir examples fastapi_app:app`.

    curl -F picture=@photo.jpg http://127.0.0.1:8000/faces

`mien serve` is the same with limits of size and time, keys, batches and metrics: docs/serve.md.
"""

from typing import Annotated

from fastapi import FastAPI, HTTPException, UploadFile
from fastapi.params import Query

import mien

app = FastAPI(title="Faces")
reader = mien.Reader.from_pretrained()


@app.post("/faces")
def faces(picture: UploadFile, at_least: Annotated[float, Query(ge=0, le=1)] = 0.0) -> list[dict]:
    """The faces of a photograph, and what they show with a probability of `at_least` so much.

    A `def` and no `async def`: it then runs in a thread, and threads may share a Reader.
    """
    try:
        found = reader(picture.file)
    except mien.ReadError as error:
        raise HTTPException(422, str(error)) from None
    return [face.to_dict() for face in found if face.probability >= at_least]
