"""The pack in ComfyUI's own frontend, in a real browser: templates open and run, the panel follows a run and steers it.

Each in both of the frontend's ways to draw nodes: on the canvas, and as elements of the page ("Vue nodes").
"""

import json

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

renderers = pytest.mark.parametrize("vue_nodes", [False, True], ids=["canvas", "vue"])


@pytest.fixture
def page(browser, server):
    page = browser.new_page(viewport={"width": 1600, "height": 1200}, reduced_motion="reduce")
    page.goto(server.url)
    page.wait_for_function(READY, timeout=60_000)
    yield page
    page.close()


@renderers
def test_every_template_opens_from_the_template_browser_as_it_is_and_runs(
    server, filled, page, vue_nodes, workflows, small
):
    page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue_nodes)
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
        assert not page.get_by_test_id("error-overlay").is_visible(), name


@renderers
def test_the_panel_follows_a_run_survives_a_reload_and_stops_it(server, page, vue_nodes, training, status, until):
    name = f"watched_{vue_nodes}".lower()
    page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue_nodes)
    server.run(training(name, 100_000))
    until(lambda: status(name)["step"] >= 2)
    page.reload()
    page.wait_for_function(READY, timeout=60_000)
    page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('u1-runs')")
    page.locator(".u1-runs li button", has_text=name).click()
    panel = page.locator(".u1-runs .u1-panel")
    first = _step(panel)
    until(lambda: _step(panel) > first)
    panel.get_by_role("button", name="Pause").press("Enter")
    panel.locator("[data-state=paused]").wait_for()
    panel.get_by_role("button", name="Go on").press("Enter")
    panel.locator("[data-state=running]").wait_for()
    panel.get_by_role("button", name="Stop and save").press("Enter")
    panel.locator("[data-state=stopped]").wait_for()
    assert status(name)["lora"].startswith("step_")
    graph = {"1": {"class_type": "U1TrainingRun", "inputs": {"name": name, "step": 0, "wait": True, "strength": 1.0}}}
    page.evaluate("async (graph) => { await app.loadApiJson(graph, 'run'); await app.queuePrompt(0); }", graph)
    on_node = page.locator(".u1-panel:not(.u1-runs .u1-panel)")
    on_node.locator("[data-state=stopped]").wait_for()
    assert on_node.locator(".u1-name").inner_text() == name


def _step(panel) -> int:
    return int(panel.locator(".u1-words").inner_text().split()[1])
