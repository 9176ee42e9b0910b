// One run's panel: its state in words, its curves, its previews and the buttons that act on it.

import { drawChart, movingMeans } from "./chart.js";
import { makePreviews } from "./previews.js";
import { act, ended, known, load, watch } from "./runs.js";
import { duration, say } from "./words.js";

const AT_WORK = ["running", "giving way"];
const atWork = (status) => AT_WORK.includes(status.state);
/** Each with what it asks for, its words, what they mean, and when it is of use. */
const buttonsInWords = () => [
  ["pause", say("Pause"), say("Hold the run after its present step; prompts may use its live weights"), atWork],
  ["resume", say("Go on"), say("Let the paused run go on"), (status) => status.state === "paused"],
  ["save", say("Save now"), say("Write a checkpoint after the present step"), atWork],
  ["preview", say("Preview now"), say("Draw the previews after the present step"), atWork],
  ["stop", say("Stop and save"), say("Write a checkpoint and end the run"), (status) => !ended(status)],
  ["resume", say("Resume"), say("Go on from the last checkpoint"), (status) => status.resumable],
];

const panels = new Set(); // weakly: the frontend does not tell of every node that it throws away

/** Redraw all panels, or those that show one run. */
function redraw(id) {
  for (const held of panels) {
    const panel = held.deref();
    if (!panel) panels.delete(held);
    else if (!id || panel.id === id) panel.redraw();
  }
}

watch(redraw);
const recoloured = new MutationObserver(() => redraw()); // a canvas keeps the colours it was drawn in
for (const page of [document.documentElement, document.body]) recoloured.observe(page, { attributeFilter: ["class", "style"] });

/** An element showing the run that `show(id)` names, for as long as someone keeps the element. */
export function makePanel() {
  const element = document.createElement("section");
  element.className = "u1-panel";
  element.tabIndex = -1;
  element.innerHTML = `
    <header><strong class="u1-name">${say("No run yet")}</strong><span class="u1-state" role="status"></span></header>
    <progress class="u1-progress" max="1" value="0" aria-label="${say("steps done")}"></progress>
    <p class="u1-words"></p>
    <p class="u1-trouble" role="alert" hidden></p>
    <canvas class="u1-chart" role="img"></canvas>
    <div class="u1-buttons"></div>`;
  const find = (name) => element.querySelector(`.u1-${name}`);
  const canvas = find("chart");
  const previews = makePreviews();
  element.insertBefore(previews.element, find("buttons"));
  previews.element.hidden = true;
  let id = "";
  let problem = ""; // what came of the last button
  let due = 0;

  const buttons = buttonsInWords().map(([action, words, title, fits]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: words, title, hidden: true });
    button.dataset.action = action;
    button.addEventListener("click", async () => {
      problem = (await act(id, action)) ?? "";
      renderSoon();
    });
    find("buttons").append(button);
    return [button, fits];
  });

  function render() {
    due = 0;
    const run = known(id);
    if (!run || !element.isConnected) return; // once it is on the page its canvas changes its size
    element.classList.remove("u1-unknown");
    const { status, points, marks } = run;
    find("name").textContent = status.id;
    find("state").textContent = say(status.state);
    find("state").dataset.state = status.state;
    find("progress").value = status.steps ? status.step / status.steps : 0;
    find("words").textContent = inWords(status, points, marks);
    const trouble = problem || (status.state === "failed" ? status.message : status.warning);
    find("trouble").textContent = trouble;
    find("trouble").hidden = !trouble;
    const focused = element.contains(document.activeElement) ? document.activeElement : null;
    for (const [button, fits] of buttons) button.hidden = !fits(status);
    if (focused?.hidden) {
      const next = buttons.map(([button]) => button).find((button) => !button.hidden && button.dataset.action !== "stop");
      (next ?? element).focus(); // keys go on where they were, and never end a run by pressing twice
    }
    drawChart(canvas, points, marks);
    canvas.setAttribute("aria-label", `${say("loss of {run}", { run: status.id })}: ${find("words").textContent}`);
    previews.show(id, marks);
  }

  /** News may come faster than the screen shows them. */
  function renderSoon() {
    due ||= requestAnimationFrame(render);
  }

  new ResizeObserver(renderSoon).observe(canvas);
  const panel = {
    element,
    redraw: renderSoon,
    async show(next) {
      id = next;
      problem = "";
      render();
      const failure = await load(id);
      if (!failure || id !== next) return;
      element.classList.toggle("u1-unknown", !known(id));
      find("name").textContent = next;
      find("trouble").textContent = failure;
      find("trouble").hidden = false;
    },
    get id() {
      return id;
    },
  };
  element.u1Panel = panel;
  panels.add(new WeakRef(panel));
  return panel;
}

function inWords(status, points, marks) {
  const words = [say("step {step} of {steps}", status)];
  const pace = status.seconds_per_step;
  if (pace) {
    words.push(say("{seconds} s a step", { seconds: pace.toFixed(pace < 1 ? 2 : 1) }));
    if (!ended(status)) words.push(say("{time} left", { time: duration((status.steps - status.step) * pace) }));
  }
  if (points.length) words.push(`${say("loss")} ${movingMeans(points.map(([, loss]) => loss)).at(-1).toPrecision(3)}`);
  const validation = marks.findLast((mark) => "percent" in mark);
  if (validation) words.push(say("validation {percent}% of base", { percent: validation.percent.toFixed(1) }));
  if (status.memory_bytes) words.push(memory(status));
  if (status.lora) words.push(status.lora);
  if (status.message && status.state !== "failed") words.push(status.message);
  return words.join(" · ");
}

function memory({ memory_bytes: used, planned_bytes: planned }) {
  const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);
  const most = say("{gib} GiB at most", { gib: gib(used) });
  return planned ? `${most}, ${say("{gib} planned", { gib: gib(planned) })}` : most;
}
