"""The pack in ComfyUI's own frontend, in a real browser: templates open and run, the panel follows a run and steers it.

Each in both of the frontend's ways to draw nodes: on the canvas, and as elements of the page ("Vue nodes").
"""

import json
from pathlib import Path

import pytest

PACK = "u1-style-studio"
READY = "() => window.app?.graph && window.app.extensionManager"
BROWSE = "() => app.extensionManager.command.execute('Comfy.BrowseTemplates')"
OPENED = "(types) => app.graph.nodes.map((node) => node.type).sort().join() == types.join()"
GRAPH = """async () => {
  const { output } = await app.graphToPrompt();
  const plain = {};
  for (const [id, node] of Object.entries(output)) plain[id] = { class_type: node.class_type, inputs: node.inputs };
  return plain;
}"""
SET = """(wanted) => {
  for (const [id, { inputs }] of Object.entries(wanted))
    for (const widget of app.graph.getNodeById(id).widgets ?? [])
      if (widget.name in inputs) widget.value = inputs[widget.name];
}"""
QUEUE = "async (graph) => { await app.loadApiJson(graph, 'run'); await app.queuePrompt(0); }"
ON_NODE = ".u1-panel:not(.u1-runs .u1-panel)"
BRING_NODE_IN_SIGHT = """([x, y]) => {
  const [node] = app.graph.nodes;
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [x - node.pos[0], y - node.pos[1]];
  app.canvas.setDirty(true, true);
}"""
COPY = "() => { app.canvas.selectItems(app.graph.nodes); app.canvas.copyToClipboard(); }"
INTO_SUBGRAPH = """async () => {
  app.graph.convertToSubgraph(new Set(app.graph.nodes));
  const workflow = JSON.parse(JSON.stringify(app.graph.serialize()));
  await app.loadGraphData(workflow);
  return workflow;
}"""
LOAD_API = "(graph) => app.loadApiJson(graph, 'run')"
RUN_SHOWN = """() => {
  const nodes = app.graph.nodes.flatMap((node) => node.subgraph?.nodes ?? [node]);
  return nodes.find((node) => node.type === "TrainStyleLoRA").properties.u1_run;
}"""
LOAD = "(workflow) => app.loadGraphData(workflow)"
SET_LANGUAGE = "(name) => app.extensionManager.setting.set('Comfy.Locale', name)"
LEGIBLE, COUNT_CHARTS = (
    Path(__file__).with_name(f"{name}.js").read_text(encoding="utf-8") for name in ("legible", "count_charts")
)

renderers = pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])


@pytest.fixture
def page(browser, server):
    page = browser.new_page(viewport={"width": 1600, "height": 1200}, reduced_motion="reduce")
    _open(page, server)
    yield page
    page.close()


@renderers
def test_every_template_opens_from_the_template_browser_as_it_is_and_runs(
    server, filled, page, vue_nodes, workflows, small
):
    _draw_nodes_by(page, vue_nodes)
    listed = json.loads(server.get("/api/workflow_templates"))[PACK]
    assert sorted(listed) == list(workflows)
    for name, workflow in workflows.items():
        page.evaluate(BROWSE)
        page.get_by_role("button", name=PACK).dispatch_event("click")
        card = page.get_by_test_id(f"template-workflow-{name}")
        assert card.locator("img").first.evaluate("async (img) => (await img.decode(), img.naturalWidth)") >= 256
        card.dispatch_event("click")
        page.wait_for_function(OPENED, arg=sorted(node["class_type"] for node in workflow.values()))
        assert page.evaluate(GRAPH) == workflow, name
        page.evaluate(SET, small[name])
        assert page.evaluate(GRAPH) == small[name], name
        with page.expect_response("**/api/prompt") as asked:
            page.get_by_test_id("queue-button").click()
        result = server.wait(asked.value.json()["prompt_id"])
        assert result["status"]["status_str"] == "success", (name, result["status"])
        if "1" in result["outputs"]:  # what the model's node says of it stands on it
            page.locator(".u1-text", has_text=result["outputs"]["1"]["text"][0].splitlines()[0]).wait_for()
        assert not page.get_by_test_id("error-overlay").is_visible(), name


@renderers
def test_the_panel_follows_a_run_survives_a_reload_and_stops_it(server, page, vue_nodes, training, status, until):
    name = f"watched_{vue_nodes}".lower()
    _draw_nodes_by(page, vue_nodes)
    server.run(training(name, 100_000))
    until(lambda: status(name)["step"] >= 2)
    _open(page, server)
    panel = _panel_in_sidebar(page, name)
    first = _step(panel)
    until(lambda: _step(panel) > first)
    panel.get_by_role("button", name="Pause").press("Enter")
    panel.locator("[data-state=paused]").wait_for()
    panel.get_by_role("button", name="Go on").press("Enter")
    panel.locator("[data-state=running]").wait_for()
    panel.get_by_role("button", name="Save now").press("Enter")
    saved = until(lambda: status(name)["lora"])
    assert saved.startswith("step_")
    until(lambda: status(name)["step"] > int(saved[5:11]))
    panel.get_by_role("button", name="Stop and save").press("Enter")
    panel.locator("[data-state=stopped]").wait_for()
    assert status(name)["lora"] > saved
    page.evaluate(QUEUE, _look_at(name))
    on_node = page.locator(ON_NODE)
    on_node.locator("[data-state=stopped]").wait_for()
    assert on_node.locator(".u1-name").inner_text() == name
    page.wait_for_timeout(1500)  # the frontend keeps what is on the canvas a moment after a change
    _open(page, server)
    page.locator(ON_NODE).locator("[data-state=stopped]").wait_for()
    assert page.locator(ON_NODE).locator(".u1-name").inner_text() == name


@renderers
@pytest.mark.parametrize("within", [False, True], ids=["workflow", "subgraph"])
def test_a_node_that_waits_for_its_run_shows_it_from_the_beginning(
    server, page, vue_nodes, within, training, status, until
):
    name = f"awaited_{vue_nodes}_{within}".lower()
    _draw_nodes_by(page, vue_nodes)
    page.evaluate(LOAD_API, training(name, 100_000, wait=True))
    if within:
        page.evaluate(INTO_SUBGRAPH)
    with page.expect_response("**/api/prompt") as asked:
        page.evaluate("() => app.queuePrompt(0)")
    until(lambda: page.evaluate(RUN_SHOWN) == name)
    if not within:
        page.locator(ON_NODE).locator("[data-state=running]").wait_for(state="attached")
        assert _step(page.locator(ON_NODE)) < 100_000
    server.post(f"/u1/runs/{name}/stop")
    assert server.wait(asked.value.json()["prompt_id"])["status"]["status_str"] == "success"


@renderers
def test_panels_of_nodes_that_the_frontend_throws_away_are_forgotten(
    server, browser, vue_nodes, training, status, until
):
    _have_run_to_look_at(server, training, status, until)
    page = browser.new_page(viewport={"width": 1600, "height": 1200}, reduced_motion="reduce")
    page.add_init_script(COUNT_CHARTS)
    _open(page, server)
    _draw_nodes_by(page, vue_nodes)
    page.evaluate(QUEUE, _look_at("looked_at"))
    page.locator(ON_NODE).locator("[data-state=finished]").wait_for()
    for _ in range(5):
        page.evaluate(COPY)
    assert _kept_charts(page) == 1
    assert page.evaluate("redrawnCharts()") == 1
    workflow = page.evaluate(INTO_SUBGRAPH)
    kept = _kept_charts(page)
    for _ in range(3):
        page.evaluate(LOAD, workflow)
    assert page.evaluate("redrawnCharts()") <= 1
    if not vue_nodes:  # there the frontend itself keeps every node of a subgraph that it has drawn
        assert _kept_charts(page) == kept
    page.close()


def test_a_run_that_a_crash_of_the_server_cut_off_is_resumed_from_the_panel_to_the_same_bytes(
    server, base, page, training, status, until
):
    steps = {"checkpoint_every": 10, "validate_every": 20}
    server.run(training("entire", 60, **steps))
    until(lambda: status("entire")["state"] == "finished", 60)
    server.run(training("killed", 60, **steps))
    until(lambda: status("killed")["step"] >= 25, 60)
    server.kill()
    server.start()
    _open(page, server)
    panel = _panel_in_sidebar(page, "killed")
    panel.locator("[data-state=interrupted]").wait_for()
    assert _step(panel) >= 20
    assert "% of base" in panel.locator(".u1-words").inner_text()
    assert json.loads(server.get("/u1/runs/entire"))["points"][-1][0] == 60
    panel.get_by_role("button", name="Resume").press("Enter")
    panel.locator("[data-state=finished]").wait_for(timeout=60_000)
    assert [step for step, _ in json.loads(server.get("/u1/runs/killed"))["points"]] == list(range(1, 61))
    killed, entire = (base / f"models/loras/u1/{name}.safetensors" for name in ("killed", "entire"))
    assert killed.read_bytes() == entire.read_bytes().replace(b"entire", b"killed")


def test_the_list_of_runs_keeps_its_count_and_its_focus_and_is_asked_for_once(server, page, training, status, until):
    server.run(training("listed", 100_000))
    until(lambda: status("listed")["step"] >= 1)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.url.endswith("/u1/runs") else None)
    panel = _panel_in_sidebar(page, "listed")
    item = page.locator(".u1-runs li button").first
    assert item.inner_text().startswith("listed")
    item.focus()
    server.post("/u1/runs/listed/pause")
    panel.locator("[data-state=paused]").wait_for()
    assert item.locator("span").inner_text() == f"paused · {status('listed')['step']}/100000"
    server.post("/u1/runs/listed/resume")
    server.run(training("listed_next", 5))
    page.locator(".u1-runs li button", has_text="listed_next").wait_for()
    server.post("/u1/runs/listed/stop")
    page.locator(".u1-runs li", has_text="listed_nextfinished · 5/5").wait_for()
    assert item.inner_text().startswith("listed_next")
    assert page.evaluate("document.activeElement.firstChild.data") == "listed"
    assert len(asked) == 1


@renderers
@pytest.mark.parametrize("zoom", [1, 2], ids=["100%", "200%"])
def test_the_panel_is_legible_in_light_and_dark(server, browser, tmp_path, vue_nodes, zoom, training, status, until):
    _have_run_to_look_at(server, training, status, until)
    # A browser zoomed to 200 % has half as many pixels of its own, each twice as large.
    size = {"width": 1600 // zoom, "height": 1100 // zoom}
    page = browser.new_page(viewport=size, device_scale_factor=zoom, reduced_motion="reduce")
    _open(page, server)
    _draw_nodes_by(page, vue_nodes)
    page.evaluate(QUEUE, _look_at("looked_at"))
    on_node = page.locator(ON_NODE)
    on_node.locator("[data-state=finished]").wait_for()
    page.evaluate(BRING_NODE_IN_SIGHT, [500 // zoom, 60])
    in_sidebar = _panel_in_sidebar(page, "looked_at")
    for palette in ("dark", "light"):
        page.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        for place, panel in (("sidebar", in_sidebar), ("node", on_node)):
            panel.locator(".u1-pictures img").first.wait_for()
            page.wait_for_timeout(300)
            found = panel.evaluate(LEGIBLE)
            assert found["contrast"] >= 4.5, (palette, place, found)
            assert found["too_wide"] <= 1, (palette, place, found)
            assert found["sharpness"] >= 0.99, (palette, place, found)
            assert found["text_px"] >= 12, (palette, place, found)
        page.screenshot(path=tmp_path / f"{palette}.png")
    page.close()


@pytest.mark.parametrize(
    ("language", "state", "words"), [("zh", "已完成", "第 60 / 60 步"), ("ja", "完了", "ステップ 60 / 60")]
)
def test_the_panel_speaks_the_language_of_the_page(
    server, page, tmp_path, language, state, words, training, status, until
):
    _have_run_to_look_at(server, training, status, until)
    page.evaluate(SET_LANGUAGE, language)
    try:
        _open(page, server)
        panel = _panel_in_sidebar(page, "looked_at")
        panel.locator("[data-state=finished]").wait_for()
        assert panel.locator(".u1-state").inner_text() == state
        assert panel.locator(".u1-words").inner_text().startswith(words)
        page.screenshot(path=tmp_path / f"{language}.png")
        found = panel.evaluate(LEGIBLE)
        assert found["too_wide"] <= 1, found
    finally:
        page.evaluate(SET_LANGUAGE, "en")


def _have_run_to_look_at(server, training, status, until) -> None:
    """A finished run with previews and validation, made once."""
    if "looked_at" not in [run["id"] for run in json.loads(server.get("/u1/runs"))["runs"]]:
        looks = {"validate_every": 20, "preview_every": 30, "preview_prompts": "a red house\na blue boat"}
        server.run(training("looked_at", 60, **looks))
        until(lambda: status("looked_at")["state"] == "finished", 60)


def _open(page, server) -> None:
    page.goto(server.url)
    page.wait_for_function(READY, timeout=60_000)


def _draw_nodes_by(page, vue_nodes: bool) -> None:
    page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue_nodes)


def _panel_in_sidebar(page, run: str):
    """The panel in the sidebar, showing a run."""
    if not page.locator(".u1-runs").count():
        page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('u1-runs')")
    page.locator(".u1-runs li button", has_text=run).first.click()
    panel = page.locator(".u1-runs .u1-panel")
    panel.get_by_text(run, exact=True).wait_for()
    return panel


def _kept_charts(page) -> int:
    for _ in range(2):  # what only finalizers free goes the second time
        page.wait_for_timeout(300)
        page.request_gc()
    return page.evaluate("keptCharts()")


def _look_at(run: str) -> dict:
    inputs = {"name": run, "step": 0, "live": False, "wait": True, "strength": 1.0}
    return {"1": {"class_type": "U1TrainingRun", "inputs": inputs}}


def _step(panel) -> int:
    return int(panel.locator(".u1-words").inner_text().split()[1])
