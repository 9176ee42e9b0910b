"""What the browser asks of the runs: their list, their history, and pause, resume, stop.

Run ids are looked up among the runs that are there and actions are of a fixed list; no request carries a path or a
body. A page of another origin is refused.
"""

from dataclasses import asdict
from urllib.parse import urlsplit

from aiohttp import web
from server import PromptServer

from u1_core.errors import U1Error
from u1_core.workflow.runs import ACTIONS

from .base import studio

routes = PromptServer.instance.routes


@routes.get("/u1/runs")
async def list_runs(request: web.Request) -> web.Response:
    return web.json_response({"runs": [asdict(status) for status in studio().runs.statuses()]})


@routes.get("/u1/runs/{run}")
async def one_run(request: web.Request) -> web.Response:
    run = request.match_info["run"]
    runs = studio().runs
    try:
        status, points, marks = asdict(runs.status(run)), runs.history(run), runs.marks(run)
    except U1Error as problem:
        return web.json_response({"error": str(problem)}, status=404)
    return web.json_response({"id": run, "status": status, "points": points, "marks": marks})


@routes.get("/u1/runs/{run}/previews/{name}")
async def preview(request: web.Request) -> web.StreamResponse:
    try:
        return web.FileResponse(studio().runs.preview(request.match_info["run"], request.match_info["name"]))
    except U1Error as problem:
        return web.json_response({"error": str(problem)}, status=404)


@routes.post("/u1/runs/{run}/{action}")
async def act(request: web.Request) -> web.Response:
    if not _same_origin(request):
        return web.json_response({"error": "this page is not ComfyUI's own"}, status=403)
    if request.can_read_body:
        return web.json_response({"error": "this takes no body"}, status=413)
    action = request.match_info["action"]
    if action not in ACTIONS:
        return web.json_response({"error": f"{action!r} is none of {', '.join(ACTIONS)}"}, status=400)
    try:
        return web.json_response({"status": asdict(studio().runs.act(request.match_info["run"], action))})
    except U1Error as problem:
        return web.json_response({"error": str(problem)}, status=404)


def _same_origin(request: web.Request) -> bool:
    origin = request.headers.get("Origin")
    own = origin is None or urlsplit(origin).netloc == request.host
    return own and request.headers.get("Sec-Fetch-Site", "same-origin") in ("same-origin", "none")
