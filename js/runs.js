// What the page knows of the runs: history over GET, then news over the websocket.

import { api } from "../../scripts/api.js";

const runs = new Map();
const watchers = new Set();
const waiting = new Map(); // news that came while a run's history was on its way
const ENDED = new Set(["finished", "stopped", "failed", "interrupted"]);

/** Have `watcher(id)` called when something about a run has changed. Returns a function that ends it. */
export function watch(watcher) {
  watchers.add(watcher);
  return () => watchers.delete(watcher);
}

/** A run as far as it is known: {status, points, marks}, or undefined. */
export const known = (id) => runs.get(id);

/** All runs, the newest first. */
export async function list() {
  const answer = await api.fetchApi("/u1/runs");
  return answer.ok ? (await answer.json()).runs : [];
}

/** Fetch a run's whole history. Returns what went wrong, or nothing. */
export async function load(id) {
  const path = `/u1/runs/${encodeURIComponent(id)}`;
  waiting.set(id, []);
  try {
    const answer = await api.fetchApi(path);
    const told = await answer.json();
    if (!answer.ok) return told.error;
    runs.set(id, { status: told.status, points: told.points, marks: told.marks });
  } finally {
    const missed = waiting.get(id);
    waiting.delete(id);
    if (runs.has(id)) missed.forEach(take);
  }
  tell(id);
}

/** Ask for something: pause, resume, stop, save, preview. Returns what went wrong, or nothing; how the run stands then
 * is told over the websocket, and an answer that comes late would say how it stood before. */
export async function act(id, action) {
  const answer = await api.fetchApi(`/u1/runs/${encodeURIComponent(id)}/${action}`, { method: "POST" });
  if (!answer.ok) return (await answer.json()).error;
}

export const previewUrl = (id, name) =>
  api.apiURL(`/u1/runs/${encodeURIComponent(id)}/previews/${encodeURIComponent(name)}`);

export const ended = (status) => ENDED.has(status.state);

function tell(id) {
  for (const watcher of watchers) watcher(id);
}

/** Add news to a run that is known. Steps that it takes again, gone back to a checkpoint, replace those before. */
function take({ id, status, points, marks }) {
  const run = runs.get(id);
  run.status = status;
  if (points.length) {
    const first = points[0][0];
    const after = (step) => step >= first;
    while (run.points.length && after(run.points.at(-1)[0])) run.points.pop();
    run.points.push(...points);
  }
  const seen = new Set(run.marks.map((mark) => JSON.stringify(mark)));
  run.marks = run.marks.filter((mark) => mark.step <= status.step);
  run.marks.push(...marks.filter((mark) => !seen.has(JSON.stringify(mark))));
}

api.addEventListener("u1.run", ({ detail }) => {
  const { id } = detail;
  if (waiting.has(id)) waiting.get(id).push(detail);
  else if (runs.has(id)) {
    take(detail);
    tell(id);
  } else load(id);
});

// What was missed while the connection was away is in the history.
api.addEventListener("reconnected", () => [...runs.keys()].forEach(load));
