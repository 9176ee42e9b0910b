// One run's panel: its state in words, its curves, its previews and the buttons that act on it.

import { drawChart } from "./chart.js";
import { act, ended, known, load, previewUrl, watch } from "./runs.js";

const BUTTONS = [
  ["pause", "Pause", "Hold the run after its present step"],
  ["resume", "Go on", "Let the paused run go on"],
  ["stop", "Stop and save", "Save a checkpoint and end the run"],
];

/** An element showing the run that `show(id)` names; `remove()` ends its watching. */
export function makePanel() {
  const element = document.createElement("section");
  element.className = "u1-panel";
  element.innerHTML = `
    <header><strong class="u1-name">No run yet</strong><span class="u1-state" role="status"></span></header>
    <progress class="u1-progress" max="1" value="0" aria-label="steps done"></progress>
    <p class="u1-words"></p>
    <canvas class="u1-chart" role="img"></canvas>
    <div class="u1-previews" hidden>
      <button type="button" data-turn="-1" aria-label="Earlier preview">‹</button>
      <figure><div class="u1-pictures"></div><figcaption></figcaption></figure>
      <button type="button" data-turn="1" aria-label="Later preview">›</button>
    </div>
    <div class="u1-buttons"></div>`;
  const find = (name) => element.querySelector(`.u1-${name}`);
  const canvas = find("chart");
  let id = "";
  let preview = -1; // -1 is the newest

  for (const [action, words, title] of BUTTONS) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: words, title, hidden: true });
    button.dataset.action = action;
    button.addEventListener("click", async () => {
      const problem = await act(id, action);
      if (problem) find("words").textContent = problem;
    });
    find("buttons").append(button);
  }
  for (const turn of element.querySelectorAll("[data-turn]")) {
    turn.addEventListener("click", () => {
      const count = previewsOf(known(id)).length;
      const now = preview < 0 ? count - 1 : preview;
      preview = Math.min(count - 1, Math.max(0, now + Number(turn.dataset.turn)));
      if (preview === count - 1) preview = -1;
      render();
    });
  }

  function render() {
    const run = known(id);
    if (!run) return;
    const { status, points, marks } = run;
    find("name").textContent = status.id;
    find("state").textContent = status.state;
    find("state").dataset.state = status.state;
    find("progress").value = status.steps ? status.step / status.steps : 0;
    find("words").textContent = inWords(status, points, marks);
    for (const button of element.querySelectorAll("[data-action]")) {
      const paused = status.state === "paused";
      const fits = { pause: !paused, resume: paused, stop: true }[button.dataset.action];
      button.hidden = ended(status) || !fits;
    }
    drawChart(canvas, points, marks);
    canvas.setAttribute("aria-label", `loss of ${status.id}: ${find("words").textContent}`);
    showPreview(previewsOf(run));
  }

  function showPreview(previews) {
    find("previews").hidden = !previews.length;
    if (!previews.length) return;
    const place = preview < 0 ? previews.length - 1 : preview;
    const shown = previews[place];
    const key = `${id} ${shown.files.join()}`;
    element.querySelector("figcaption").textContent = `step ${shown.step} (${place + 1} of ${previews.length})`;
    if (find("pictures").dataset.key === key) return;
    find("pictures").dataset.key = key;
    find("pictures").replaceChildren(
      ...shown.files.map((name) =>
        Object.assign(new Image(), { src: previewUrl(id, name), alt: `preview at step ${shown.step}`, loading: "lazy" }),
      ),
    );
  }

  const unwatch = watch((changed) => changed === id && render());
  const resized = new ResizeObserver(render);
  resized.observe(canvas);
  return {
    element,
    show(next) {
      id = next;
      preview = -1;
      return load(id);
    },
    get id() {
      return id;
    },
    remove() {
      unwatch();
      resized.disconnect();
    },
  };
}

const previewsOf = (run) => (run?.marks ?? []).filter((mark) => "files" in mark);

function inWords(status, points, marks) {
  const words = [`step ${status.step} of ${status.steps}`];
  const pace = status.seconds_per_step;
  if (pace) {
    words.push(`${pace < 1 ? pace.toFixed(2) : pace.toFixed(1)} s a step`);
    if (!ended(status)) words.push(`${duration((status.steps - status.step) * pace)} left`);
  }
  if (points.length) words.push(`loss ${points[points.length - 1][1].toPrecision(3)}`);
  const validation = marks.findLast((mark) => "percent" in mark);
  if (validation) words.push(`validation ${validation.percent.toFixed(1)}% of base`);
  if (status.memory_bytes) words.push(`${(status.memory_bytes / 2 ** 30).toFixed(1)} GiB at most`);
  if (status.lora) words.push(status.lora);
  if (status.message) words.push(status.message);
  return words.join(" · ");
}

function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.round(seconds)} s`;
}
