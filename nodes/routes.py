"""What the browser asks of the runs: their list, their history and pictures, and to pause, resume, stop, save, preview.

Run ids are looked up among the runs that are there and actions are of a fixed list; no request carries a path or a
body. A page of another origin is refused.
"""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from server import PromptServer

from u1_core.errors import U1Error
from u1_core.workflow.runs import ACTIONS
from u1_core.workflow.training import act_on_run

from .base import studio

routes = PromptServer.instance.routes


@routes.get("/u1/runs")
async def list_runs(request: web.Request) -> web.Response:
    return await _answer(lambda: {"runs": [asdict(status) for status in studio().runs.statuses()]})


@routes.get("/u1/runs/{run:[^/]+}")
async def one_run(request: web.Request) -> web.Response:
    run = request.match_info["run"]

    def told() -> dict[str, Any]:
        points, marks = studio().runs.history(run)
        return {"id": run, "status": asdict(studio().runs.status(run)), "points": points, "marks": marks}

    return await _answer(told)


@routes.get("/u1/runs/{run:[^/]+}/previews/{name}")
async def preview(request: web.Request) -> web.StreamResponse:
    try:
        return web.FileResponse(studio().runs.preview(request.match_info["run"], request.match_info["name"]))
    except U1Error as problem:
        return web.json_response({"error": str(problem)}, status=404)


@routes.post("/u1/runs/{run:[^/]+}/{action}")
async def act(request: web.Request) -> web.Response:
    if not _same_origin(request):
        return web.json_response({"error": "this page is not ComfyUI's own"}, status=403)
    if request.can_read_body:
        return web.json_response({"error": "this takes no body"}, status=413)
    run, action = request.match_info["run"], request.match_info["action"]
    if action not in ACTIONS:
        return web.json_response({"error": f"{action!r} is none of {', '.join(ACTIONS)}"}, status=400)
    return await _answer(lambda: {"status": asdict(act_on_run(studio(), run, action))})


async def _answer(tell: Callable[[], dict[str, Any]]) -> web.Response:
    """What `tell` says, on a thread of its own: a long run's log takes a while to read, and others are to be served."""
    try:
        return web.json_response(await asyncio.to_thread(tell))
    except U1Error as problem:
        return web.json_response({"error": str(problem)}, status=404)


def _same_origin(request: web.Request) -> bool:
    origin = request.headers.get("Origin")
    own = origin is None or urlsplit(origin).netloc == request.host
    return own and request.headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none")
