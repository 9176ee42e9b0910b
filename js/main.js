// Puts the panel on the nodes of training, their words on the others, and the list of runs into the sidebar.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { makePanel } from "./panel.js";
import { known, list, watch } from "./runs.js";
import { loadWords, say } from "./words.js";

const CATEGORY = "U1 Style Studio";
const WITH_PANEL = new Set(["TrainStyleLoRA", "U1TrainingRun"]);
const PANEL_SIZE = [420, 440];
const TEXT_HEIGHT = 84;
const PROPERTY = "u1_run";
const shows = new WeakMap(); // node -> what has its panel show a run

function addPanel(node) {
  const panel = makePanel();
  const widget = node.addDOMWidget("u1_panel", "u1_panel", panel.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => PANEL_SIZE[1],
  });
  widget.serialize = false;
  const show = (run) => {
    node.properties[PROPERTY] = run;
    keepCanvas();
    panel.show(run);
  };
  shows.set(node, show);
  const executed = node.onExecuted;
  node.onExecuted = function (output) {
    executed?.call(this, output);
    const run = output?.u1?.[0]?.run;
    if (run) show(run);
  };
  const configured = node.onConfigure;
  node.onConfigure = function (saved) {
    configured?.call(this, saved);
    if (this.properties[PROPERTY]) panel.show(this.properties[PROPERTY]);
  };
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, PANEL_SIZE[0]), height]);
}

/** Have a node show the run that it begins at once: it may wait for the run's end. Other pages are told of the run too,
 * and a node of theirs may have the same id; but what is executing is told to the page that has queued it. */
function showFromTheBeginning() {
  let executing;
  api.addEventListener("executing", ({ detail }) => {
    executing = detail;
  });
  api.addEventListener("u1.run", ({ detail: { id, node, status } }) => {
    if (node && node === executing && status.state === "queued") shows.get(nodeAt(node))?.(id);
  });
}

/** The node of an execution id: "5:12" is node 12 of the subgraph that node 5 is. */
function nodeAt(path) {
  let graph = app.rootGraph ?? app.graph; // as older frontends call it
  let node;
  for (const id of path.split(":")) {
    node = graph?.getNodeById(id);
    graph = node?.subgraph;
  }
  return node;
}

/** What a node says of its result, under its widgets: the frontend shows pictures by itself, but no text. */
function addText(node) {
  const executed = node.onExecuted;
  let words;
  node.onExecuted = function (output) {
    executed?.call(this, output);
    if (!output?.text) return;
    words ??= addTextWidget(this);
    words.textContent = output.text.join("\n");
  };
}

function addTextWidget(node) {
  const element = Object.assign(document.createElement("pre"), { className: "u1-text", tabIndex: 0 });
  const options = { serialize: false, hideOnZoom: false, getMinHeight: () => TEXT_HEIGHT };
  node.addDOMWidget("u1_text", "u1_text", element, options).serialize = false;
  const [width, height] = node.computeSize();
  node.setSize([Math.max(width, node.size[0]), Math.max(height, node.size[1] + TEXT_HEIGHT)]);
  return element;
}

/** Have the frontend keep the canvas as it is now for a reload: by itself it does so after what the user does. */
function keepCanvas() {
  const tracker = app.extensionManager.workflow?.activeWorkflow?.changeTracker;
  (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);
}

function renderRuns(container) {
  container.innerHTML = `<section class="u1-runs"><h3>${say("U1 training runs")}</h3><ul></ul><p></p></section>`;
  const [items, empty] = [container.querySelector("ul"), container.querySelector("p")];
  const panel = makePanel();
  const found = new Map(); // run id -> its item, which stays as it may have the focus

  function itemOf(status) {
    if (!found.has(status.id)) found.set(status.id, newItem(status.id));
    const item = found.get(status.id);
    item.querySelector("span").textContent = inShort(known(status.id)?.status ?? status);
    return item;
  }

  function newItem(id) {
    const item = document.createElement("li");
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.setAttribute("aria-pressed", id === panel.id);
    button.append(id, document.createElement("span"));
    button.addEventListener("click", () => {
      for (const other of items.querySelectorAll("button")) other.setAttribute("aria-pressed", other === button);
      if (!panel.element.isConnected) container.firstChild.append(panel.element);
      panel.show(id);
    });
    item.append(button);
    return item;
  }

  async function refresh() {
    const { runs = [], error } = await list();
    runs.map(itemOf).forEach((item, place) => {
      const there = items.children[place] ?? null;
      if (item !== there) items.insertBefore(item, there);
    });
    empty.textContent = error ?? (runs.length ? "" : say("No runs yet. Queue a workflow with Train Style LoRA."));
  }

  const unwatch = watch((id) => {
    const item = itemOf(known(id).status);
    if (!item.parentNode) items.prepend(item); // a run that begins is the newest
    empty.textContent = "";
  });
  api.addEventListener("reconnected", refresh);
  refresh();
  return () => {
    unwatch();
    api.removeEventListener("reconnected", refresh);
  };
}

const inShort = (status) => `${say(status.state)} · ${status.step}/${status.steps}`;

app.registerExtension({
  name: "u1.style.studio",
  init: loadWords,
  setup() {
    const style = Object.assign(document.createElement("link"), { rel: "stylesheet" });
    style.href = new URL("./u1.css", import.meta.url).href;
    document.head.append(style);
    showFromTheBeginning();
    let close;
    app.extensionManager.registerSidebarTab({
      id: "u1-runs",
      icon: "pi pi-chart-line",
      title: say("U1 runs"),
      tooltip: say("U1 training runs"),
      type: "custom",
      render(container) {
        close?.();
        close = renderRuns(container);
      },
      destroy: () => close?.(),
    });
  },
  nodeCreated(node) {
    if (WITH_PANEL.has(node.comfyClass)) addPanel(node);
    else if (node.constructor.nodeData?.category === CATEGORY) addText(node);
  },
});
