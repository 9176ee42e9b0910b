// What the page knows of the runs: history over GET, then news over the websocket.

import { api } from "../../scripts/api.js";

const runs = new Map();
const watchers = new Set();
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
  return (await answer.json()).runs;
}

/** Fetch a run's whole history. */
export async function load(id) {
  const answer = await api.fetchApi(`/u1/runs/${encodeURIComponent(id)}`);
  if (!answer.ok) return undefined;
  const { status, points, marks } = await answer.json();
  runs.set(id, { status, points, marks });
  tell(id);
  return runs.get(id);
}

/** Pause, resume or stop. Returns what went wrong, or nothing. */
export async function act(id, action) {
  const answer = await api.fetchApi(`/u1/runs/${encodeURIComponent(id)}/${action}`, { method: "POST" });
  return answer.ok ? "" : (await answer.json()).error;
}

export const previewUrl = (id, name) =>
  api.apiURL(`/u1/runs/${encodeURIComponent(id)}/previews/${encodeURIComponent(name)}`);

export const ended = (status) => ENDED.has(status.state);

function tell(id) {
  for (const watcher of watchers) watcher(id);
}

api.addEventListener("u1.run", ({ detail }) => {
  const run = runs.get(detail.id);
  if (run) {
    run.status = detail.status;
    const last = run.points.length ? run.points[run.points.length - 1][0] : 0;
    run.points.push(...detail.points.filter(([step]) => step > last));
    const seen = new Set(run.marks.map((mark) => JSON.stringify(mark)));
    run.marks.push(...detail.marks.filter((mark) => !seen.has(JSON.stringify(mark))));
  } else if (detail.status.step <= 1) {
    runs.set(detail.id, { status: detail.status, points: [...detail.points], marks: [...detail.marks] });
  } else {
    load(detail.id);
    return;
  }
  tell(detail.id);
});

// What was missed while the connection was away is in the history.
api.addEventListener("reconnected", () => [...runs.keys()].forEach(load));
