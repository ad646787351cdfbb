"""Uploads in FastAPI, with a page for a person: `uvicorn tests.examples.fastapi_app:app`.

It never awaits S3 or Redis on the event loop: the handlers are plain functions, which FastAPI runs in threads.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from uuid import UUID

from fastapi import FastAPI, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse

from tests.examples import uploads

logger = logging.getLogger(__name__)
app = FastAPI(title="Uploads")


@app.get("/", include_in_schema=False)
def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"), headers={"Cache-Control": "no-cache"})


@app.post("/files", status_code=202)
def upload(file: UploadFile, request: Request) -> JSONResponse:
    task_id = uploads.accept(file.file)
    where = str(request.url_for("status", task_id=task_id))
    return JSONResponse({"id": task_id, "status_url": where}, 202, {"Location": where})


@app.get("/tasks/{task_id}")
def status(task_id: UUID) -> dict[str, Any]:
    return uploads.state(task_id)


@app.get("/tasks/{task_id}/result")
def result(task_id: UUID) -> StreamingResponse:
    body, size = uploads.result(task_id)
    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{task_id}.gz"'}
    return StreamingResponse(body, media_type="application/gzip", headers=headers)


@app.delete("/tasks/{task_id}/result", status_code=202)
def discard(task_id: UUID) -> dict[str, Any]:
    uploads.discard(task_id)
    return {}


def refuse(request: Request, error: Exception) -> JSONResponse:
    status, said = uploads.answer(error)
    logger.warning("%s %s: %s: %s", request.method, request.url.path, status, error)
    return JSONResponse({"error": said}, status, uploads.answer_headers(status))


for expected in uploads.EXPECTED:
    app.add_exception_handler(expected, refuse)
