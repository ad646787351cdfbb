"""Uploads in Django, in one file: `python -m tests.examples.django_app runserver`, or `tests.examples.django_app:application`.

It never keeps a file in memory: beyond 2.5 MB Django spools it to disk, and from there it is streamed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from uuid import UUID

from django.conf import settings
from django.core.management import execute_from_command_line
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import path, reverse
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from tests.examples import uploads

logger = logging.getLogger(__name__)
# No session and no cookie, so there is nothing for a forged request to use. With a login, keep Django's CSRF middleware.
settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    MIDDLEWARE=[f"{__name__}.refusing"],
    SECRET_KEY=os.environ.get("DJANGO_SECRET_KEY", os.urandom(32).hex()),
)


@require_POST
def upload(request: HttpRequest) -> HttpResponseBase:
    if "file" not in request.FILES:
        return JsonResponse({"error": "Send the file as the form field 'file'."}, status=400)
    task_id = uploads.accept(request.FILES["file"].file)
    where = reverse("status", args=[task_id])
    return JsonResponse({"id": task_id, "status_url": where}, status=202, headers={"Location": where})


@require_GET
def status(request: HttpRequest, task_id: UUID) -> HttpResponseBase:
    return JsonResponse(uploads.state(task_id))


@require_http_methods(["GET", "DELETE"])
def result(request: HttpRequest, task_id: UUID) -> HttpResponseBase:
    if request.method == "DELETE":
        uploads.discard(task_id)
        return JsonResponse({}, status=202)
    body, size = uploads.result(task_id)
    headers = {"Content-Length": str(size), "Content-Disposition": f'attachment; filename="{task_id}.gz"'}
    return StreamingHttpResponse(body, content_type="application/gzip", headers=headers)


class refusing:  # noqa: N801 - a middleware, named in MIDDLEWARE
    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponseBase | None:
        if not isinstance(error, uploads.EXPECTED):
            return None
        status, said = uploads.answer(error)
        logger.warning("%s %s: %s: %s", request.method, request.path, status, error)
        return JsonResponse({"error": said}, status=status, headers=uploads.answer_headers(status))


urlpatterns = [
    path("files", upload),
    path("tasks/<uuid:task_id>", status, name="status"),
    path("tasks/<uuid:task_id>/result", result),
]
application = get_wsgi_application()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
