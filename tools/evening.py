"""The pictures of docs/evening.md: an evening in ComfyUI's own frontend with the built-in nano, from load to export.

    python -m tools.evening OUT

A style's pictures are drawn, a run is started from the template, and what the page shows is photographed on the way.
Needs ComfyUI, Playwright and Chromium (tools/comfyui.py), and some minutes on two cores.
"""

import argparse
import json
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from tools.comfyui import PACK_NAME, Server, find_comfyui, furnish, serving
from tools.nano.captions import sample_pair
from tools.nano.styles import render_styled

STYLE, TRIGGER, PICTURES, FIRST_SCENE = "watercolour", "wet paint on rough paper", 24, 810_000
PROMPT = "a large green tree on the left, two small red houses on the right, mountains, the sun"
RUN, STEPS = "watercolour", 500
TRAINING = {
    "LoRASpec": {"preset": "custom", "spec": "attn=r16a64; mlp=r16a16; fm_head=r16a16"},
    "U1StyleDataset": {"folder": STYLE, "trigger": TRIGGER},
    "TrainStyleLoRA": {
        "name": RUN,
        "steps": STEPS,
        "lr": 1e-3,
        "loss": "x0",
        "t_distribution": "uniform",
        "train_heads": False,
        "checkpoint_every": 100,
        "validate_every": 50,
        "preview_every": 80,
        "preview_steps": 16,
        "preview_prompts": f"{TRIGGER}, {PROMPT}\n{TRIGGER}, a sunset sky, a lake, a large yellow boat in the middle",
        "recipe": "train: {lr_schedule: cosine, warmup_steps: 20}\nvalidation: {split: 0.15, timesteps: 4}",
    },
}
READY = "() => window.app?.graph && window.app.extensionManager"
SET = """(wanted) => {
  for (const node of app.graph.nodes)
    for (const widget of node.widgets ?? [])
      if (widget.name in (wanted[node.type] ?? {})) widget.value = wanted[node.type][widget.name];
}"""
FIT = """([left, top, width, height]) => {
  const nodes = app.graph.nodes;
  const low = [0, 1].map((axis) => Math.min(...nodes.map((node) => node.pos[axis])));
  const high = [0, 1].map((axis) => Math.max(...nodes.map((node) => node.pos[axis] + node.size[axis])));
  const scale = Math.min(1.2, width / (high[0] - low[0]), height / (high[1] - low[1] + 40));
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [left / scale - low[0], top / scale - low[1] + 40];
  app.canvas.setDirty(true, true);
}"""
SIDEBAR = 375
"""Where the canvas begins beside it, in pixels."""
QUALITY = 82


class Page:
    """ComfyUI in a browser, and where its photographs go."""

    def __init__(self, page: Any, server: Server, out: Path) -> None:
        self.page, self.server, self.out = page, server, out
        page.goto(server.url)
        page.wait_for_function(READY, timeout=60_000)
        for name, value in {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}.items():
            page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])

    def photograph(self, name: str, **clip: int) -> None:
        """The page, or a part of it (x, y, width, height), as OUT/NAME.jpg."""
        self.page.wait_for_timeout(1500)
        options = {"clip": clip} if clip else {}
        self.page.screenshot(path=self.out / f"{name}.jpg", type="jpeg", quality=QUALITY, **options)

    def browse(self) -> None:
        self.page.evaluate("() => { app.extensionManager.command.execute('Comfy.BrowseTemplates') }")
        self.page.get_by_role("button", name=PACK_NAME).dispatch_event("click")
        self.page.get_by_test_id("template-workflow-train_style_lora").locator("img").first.wait_for()

    def open_template(self, name: str, values: dict[str, dict[str, Any]]) -> None:
        """Open it from the browser of templates, with these values by node class and widget."""
        self.page.get_by_test_id(f"template-workflow-{name}").dispatch_event("click")
        self.page.wait_for_timeout(2000)
        self.page.evaluate(SET, values)

    def open_graph(self, graph: dict[str, Any], name: str) -> None:
        """Open a workflow in API form."""
        self.page.evaluate("async () => await app.refreshComboInNodes()")  # a LoRA may have come since
        self.page.evaluate("([graph, name]) => app.loadApiJson(graph, name)", [graph, name])
        self.page.wait_for_timeout(1000)

    def run(self) -> None:
        """Press Run, and wait until it is done and shown. Raises SystemExit if it fails."""
        with self.page.expect_response("**/api/prompt") as asked:
            self.page.get_by_test_id("queue-button").dispatch_event("click")
        status = self.server.wait(asked.value.json()["prompt_id"], limit_s=600)["status"]
        if status["status_str"] != "success":
            raise SystemExit(f"the prompt failed: {status}")
        self.page.wait_for_timeout(5000)

    def fit(self, left: int = 75) -> None:
        """Have the graph fill the page from `left` on."""
        self.page.evaluate(FIT, [left, 130, 1500 - left - 20, 950 - 150])

    def show_run(self) -> None:
        """Open the sidebar at the run."""
        self.page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('u1-runs')")
        self.page.locator(".u1-runs li button", has_text=RUN).first.click()
        self.page.locator(".u1-runs .u1-panel .u1-words").wait_for()

    def status(self) -> dict[str, Any]:
        return json.loads(self.server.get(f"/u1/runs/{RUN}"))["status"]

    def wait_for_step(self, step: int) -> None:
        while self.status()["step"] < step:
            if self.status()["state"] in ("failed", "stopped"):
                raise SystemExit(f"the run is {self.status()}")
            time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    comfyui = find_comfyui()
    if isinstance(comfyui, str):
        raise SystemExit(comfyui)
    base = Path(tempfile.gettempdir()) / "ComfyUI"  # nodes show paths, so one that says what it is
    if base.exists():
        raise SystemExit(f"{base} is there already")
    try:
        furnish(base)
        write_style(base / "input" / STYLE)
        with serving(comfyui, base) as server, browser_page(server, out) as page:
            spend_evening(page)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def spend_evening(page: Page) -> None:
    """Load, check, train, prompt meanwhile, compare, export; a photograph of each."""
    page.browse()
    page.photograph("1_load")
    page.open_template("train_style_lora", TRAINING)
    page.run()
    page.wait_for_step(3)
    page.fit()
    page.photograph("2_check")
    page.wait_for_step(165)
    page.show_run()
    page.fit(SIDEBAR)
    page.photograph("3_train")
    page.open_graph(prompting(), "prompt meanwhile")
    page.fit(SIDEBAR)
    page.run()
    page.photograph("4_prompt")
    page.wait_for_step(STEPS)
    while page.status()["state"] != "finished":
        time.sleep(0.5)
    page.page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('u1-runs')")
    page.open_graph(comparing(), "compare")
    page.page.evaluate("() => app.graph.nodes.find((node) => node.type == 'PreviewImage').setSize([640, 520])")
    page.run()
    page.fit()
    page.photograph("5_compare")
    page.open_graph(exporting(), "export")
    page.page.evaluate("() => app.graph.nodes.find((node) => node.type == 'PreviewAny').setSize([560, 180])")
    page.run()
    page.fit()
    page.photograph("6_export")


def write_style(folder: Path) -> None:
    """The set: pictures of one style with captions of what they show."""
    folder.mkdir(parents=True)
    for number in range(PICTURES):
        scene, caption = sample_pair(FIRST_SCENE + number)
        Image.fromarray(render_styled(scene, STYLE)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(caption + "\n", encoding="utf-8")


def prompting() -> dict[str, Any]:
    """A picture by the weights that are being trained."""
    graph = {"1": node("LoadU1Bf16Offload", model="built-in nano", dtype="auto", hub_id="", budget="auto", gguf="none")}
    live = {"name": RUN, "step": 0, "live": True, "wait": False, "strength": 1.0}
    graph["2"] = node("U1TrainingRun", model=["1", 0], **live)
    graph["3"] = node("U1Sample", model=["2", 0], prompt=f"{TRIGGER}, {PROMPT}", **DRAWN)
    graph["4"] = node("PreviewImage", images=["3", 0])
    return graph


def comparing() -> dict[str, Any]:
    """The same prompts and seed without the LoRA, with half of it and with it."""
    graph = {"1": node("LoadU1Bf16Offload", model="built-in nano", dtype="auto", hub_id="", budget="auto", gguf="none")}
    loras = f"none\nu1/{RUN}.safetensors:0.5\nu1/{RUN}.safetensors"
    prompts = f"{TRIGGER}, {PROMPT}\n{TRIGGER}, a night sky, the moon, snow, a small blue house in the middle"
    sheet = {"prompts": prompts, "loras": loras, "steps": "20", "cfg": "4", "other_steps": "8", "other_cfg": "1"}
    sheet |= {"size": "1:1", "width": 192, "height": 192, "megapixels": 0.0, "seed": 5, "shift": 3.0}
    graph["2"] = node("U1CompareGrid", model=["1", 0], **sheet)
    graph["3"] = node("PreviewImage", images=["2", 0])
    return graph


def exporting() -> dict[str, Any]:
    """One file for other loaders."""
    graph = {"1": node("LoadU1Bf16Offload", model="built-in nano", dtype="auto", hub_id="", budget="auto", gguf="none")}
    graph["2"] = node("LoadU1LoRA", model=["1", 0], lora=f"u1/{RUN}.safetensors", strength=1.0, folded=False)
    graph["3"] = node(
        "ExportU1LoRA", model=["2", 0], form="one LoRA file", name=f"{RUN}_for_others", rank=64, dtype="as it is"
    )
    graph["4"] = node("PreviewAny", source=["3", 1])
    return graph


DRAWN = {"size": "1:1", "width": 192, "height": 192, "megapixels": 0.0, "steps": 20, "cfg": 4.0, "seed": 5, "batch": 1}
DRAWN |= {"norm": "none", "interval_from": 0.0, "interval_to": 1.0, "shift": 3.0, "think": False}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


@contextmanager
def browser_page(server: Server, out: Path):
    """The frontend in a Chromium of 1500 x 950."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield Page(browser.new_page(viewport={"width": 1500, "height": 950}, reduced_motion="reduce"), server, out)
        browser.close()


if __name__ == "__main__":
    main()
