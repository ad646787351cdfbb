"""Uploads in Flask: `flask --app tests.examples.flask_app run`, or any WSGI server with `tests.examples.flask_app:app`.

It never keeps a file in memory: Flask spools it to disk, and from there it is streamed.
"""

from __future__ import annotations

from typing import Any, BinaryIO, cast
from uuid import UUID

from flask import Flask, Response, request, url_for

from tests.examples import uploads

app = Flask(__name__)
# Refused with 413 before it is spooled; the form around the file takes some bytes, too.
app.config["MAX_CONTENT_LENGTH"] = uploads.MAX_UPLOAD_BYTES + 100_000


@app.post("/files")
def upload() -> tuple[dict[str, Any], int, dict[str, str]]:
    if "file" not in request.files:
        return {"error": "Send the file as the form field 'file'."}, 400, {}
    task_id = uploads.accept(cast("BinaryIO", request.files["file"].stream))
    where = url_for("status", task_id=task_id)
    return {"id": task_id, "status_url": where}, 202, {"Location": where}


@app.get("/tasks/<uuid:task_id>")
def status(task_id: UUID) -> dict[str, Any]:
    return uploads.state(task_id)


@app.get("/tasks/<uuid:task_id>/result")
def result(task_id: UUID) -> Response:
    body, size = uploads.result(task_id)
    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{task_id}.gz"'}
    return Response(body, mimetype="application/gzip", headers=headers)


@app.delete("/tasks/<uuid:task_id>/result")
def discard(task_id: UUID) -> tuple[dict[str, Any], int]:
    uploads.discard(task_id)
    return {}, 202


def refuse(error: Exception) -> tuple[dict[str, Any], int, dict[str, str]]:
    status, said = uploads.answer(error)
    app.logger.warning("%s %s: %s: %s", request.method, request.path, status, error)
    return {"error": said}, status, uploads.answer_headers(status)


for expected in uploads.EXPECTED:
    app.register_error_handler(expected, refuse)
