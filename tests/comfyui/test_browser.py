"""The pack in ComfyUI's own frontend, in a real browser: templates open whole, the panel follows a run and steers it.

Needs Playwright for Python and a Chromium: on PATH, or Playwright's own.
"""

import json
import shutil
from pathlib import Path

import pytest

API = Path(__file__).resolve().parents[2] / "workflows" / "api"
READY = "() => window.app?.graph && window.app.extensionManager"
OPEN = """async ([name, api]) => {
  const answer = await fetch(`/api/workflow_templates/u1-style-studio/${name}.json`);
  await app.loadGraphData(await answer.json(), true, true, name);
  const { output } = await app.graphToPrompt();
  const plain = {};
  for (const [id, node] of Object.entries(output)) plain[id] = { class_type: node.class_type, inputs: node.inputs };
  return plain;
}"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: no browser tests")
    with playwright.sync_playwright() as driver:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    page = browser.new_page(viewport={"width": 1600, "height": 1200})
    page.goto(server.url)
    page.wait_for_function(READY, timeout=60_000)
    page.wait_for_timeout(3000)
    page.keyboard.press("Escape")
    yield page
    page.close()


def test_templates_are_listed_and_open_as_the_workflows_they_are(server, page):
    names = sorted(path.stem for path in API.glob("*.json"))
    assert sorted(json.loads(server.get("/api/workflow_templates"))["u1-style-studio"]) == names
    for name in names:
        asked = json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
        assert page.evaluate(OPEN, [name, asked]) == asked, name


@pytest.mark.parametrize("vue_nodes", [False, True])
def test_the_panel_follows_a_run_survives_a_reload_and_stops_it(server, page, vue_nodes, training, until):
    name = f"watched_{vue_nodes}".lower()
    page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue_nodes)
    server.run(training(name, 100_000))
    until(lambda: _status(server, name)["step"] >= 2)
    page.reload()
    page.wait_for_function(READY, timeout=60_000)
    page.wait_for_timeout(2000)
    page.keyboard.press("Escape")
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
    assert _status(server, name)["lora"].startswith("step_")
    graph = {"1": {"class_type": "U1TrainingRun", "inputs": {"name": name, "step": 0, "wait": True, "strength": 1.0}}}
    page.evaluate("async (graph) => { await app.loadApiJson(graph, 'run'); await app.queuePrompt(0); }", graph)
    on_node = page.locator(".u1-panel:not(.u1-runs .u1-panel)")
    on_node.locator("[data-state=stopped]").wait_for()
    assert on_node.locator(".u1-name").inner_text() == name


def _status(server, run: str) -> dict:
    return json.loads(server.get(f"/u1/runs/{run}"))["status"]


def _step(panel) -> int:
    return int(panel.locator(".u1-words").inner_text().split()[1])
