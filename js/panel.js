// One run's panel: its state in words, its curves, its previews and the buttons that act on it.

import { drawChart, movingMeans } from "./chart.js";
import { makePreviews } from "./previews.js";
import { act, ended, known, load, watch } from "./runs.js";

const AT_WORK = ["running", "giving way"];
const BUTTONS = [
  ["pause", "Pause", "Hold the run after its present step; prompts may use its live weights", (s) => AT_WORK.includes(s.state)],
  ["resume", "Go on", "Let the paused run go on", (s) => s.state === "paused"],
  ["save", "Save now", "Write a checkpoint after the present step", (s) => AT_WORK.includes(s.state)],
  ["preview", "Preview now", "Draw the previews after the present step", (s) => AT_WORK.includes(s.state)],
  ["stop", "Stop and save", "Write a checkpoint and end the run", (s) => !ended(s)],
  ["resume", "Resume", "Go on from the last checkpoint", (s) => s.resumable],
];

/** An element showing the run that `show(id)` names; `remove()` ends its watching. */
export function makePanel() {
  const element = document.createElement("section");
  element.className = "u1-panel";
  element.tabIndex = -1;
  element.innerHTML = `
    <header><strong class="u1-name">No run yet</strong><span class="u1-state" role="status"></span></header>
    <progress class="u1-progress" max="1" value="0" aria-label="steps done"></progress>
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

  const buttons = BUTTONS.map(([action, words, title, fits]) => {
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
    if (!run) return;
    const { status, points, marks } = run;
    find("name").textContent = status.id;
    find("state").textContent = status.state;
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
    canvas.setAttribute("aria-label", `loss of ${status.id}: ${find("words").textContent}`);
    previews.show(id, marks);
  }

  /** News may come faster than the screen shows them. */
  function renderSoon() {
    due ||= requestAnimationFrame(render);
  }

  const unwatch = watch((changed) => changed === id && renderSoon());
  const resized = new ResizeObserver(renderSoon);
  resized.observe(canvas);
  const recoloured = new MutationObserver(renderSoon); // a canvas keeps the colours it was drawn in
  for (const page of [document.documentElement, document.body]) recoloured.observe(page, { attributeFilter: ["class", "style"] });
  return {
    element,
    async show(next) {
      id = next;
      problem = "";
      render();
      const failure = await load(id);
      if (!failure) return;
      find("name").textContent = next;
      find("trouble").textContent = failure;
      find("trouble").hidden = false;
    },
    get id() {
      return id;
    },
    remove() {
      cancelAnimationFrame(due);
      unwatch();
      resized.disconnect();
      recoloured.disconnect();
    },
  };
}

function inWords(status, points, marks) {
  const words = [`step ${status.step} of ${status.steps}`];
  const pace = status.seconds_per_step;
  if (pace) {
    words.push(`${pace < 1 ? pace.toFixed(2) : pace.toFixed(1)} s a step`);
    if (!ended(status)) words.push(`${duration((status.steps - status.step) * pace)} left`);
  }
  if (points.length) words.push(`loss ${movingMeans(points.map(([, loss]) => loss)).at(-1).toPrecision(3)}`);
  const validation = marks.findLast((mark) => "percent" in mark);
  if (validation) words.push(`validation ${validation.percent.toFixed(1)}% of base`);
  if (status.memory_bytes) words.push(memory(status));
  if (status.lora) words.push(status.lora);
  if (status.message && status.state !== "failed") words.push(status.message);
  return words.join(" · ");
}

function memory({ memory_bytes: used, planned_bytes: planned }) {
  const most = `${(used / 2 ** 30).toFixed(1)} GiB at most`;
  return planned ? `${most}, ${(planned / 2 ** 30).toFixed(1)} planned` : most;
}

function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.round(seconds)} s`;
}
