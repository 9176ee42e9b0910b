// What the page knows of the runs: history over GET, then news over the websocket.

import { api } from "../../scripts/api.js";

const runs = new Map();
const watchers = new Set();
const loading = new Map(); // by run: the `answer` that is on its way, and the news `missed` meanwhile
const MOST_POINTS = 2000; // of a chart: then it is asked for again, and comes thinned as every history does
const ENDED = new Set(["finished", "stopped", "failed", "interrupted"]);

/** Have `watcher(id)` called when something about a run has changed. Returns a function that ends it. */
export function watch(watcher) {
  watchers.add(watcher);
  return () => watchers.delete(watcher);
}

/** A run as far as it is known: {status, points, marks}, or undefined. */
export const known = (id) => runs.get(id);

/** {runs: their statuses, the newest first}, or {error}. */
export const list = () => ask("");

/** Fetch a run's whole history; who asks while it is on its way gets the same. Returns what went wrong, or nothing. */
export function load(id) {
  if (!loading.has(id)) {
    const missed = [];
    loading.set(id, { missed, answer: fetchHistory(id, missed) });
  }
  return loading.get(id).answer;
}

async function fetchHistory(id, missed) {
  const { error, status, points, marks } = await ask(`/${encodeURIComponent(id)}`);
  loading.delete(id);
  if (!error) runs.set(id, { status, points, marks });
  if (runs.has(id)) {
    missed.forEach(take);
    tell(id);
  }
  return error;
}

/** Ask for something: pause, resume, stop, save, preview. Returns what went wrong, or nothing; how the run stands then
 * is told over the websocket, and an answer that comes late would say how it stood before. */
export async function act(id, action) {
  return (await ask(`/${encodeURIComponent(id)}/${action}`, { method: "POST" })).error;
}

/** The server's answer, or {error} where it gives none that can be read. */
async function ask(path, options) {
  try {
    const answer = await api.fetchApi(`/u1/runs${path}`, options);
    return await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }));
  } catch (problem) {
    return { error: problem.message };
  }
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
  if (loading.has(id)) loading.get(id).missed.push(detail);
  else if (runs.has(id)) {
    take(detail);
    tell(id);
    if (runs.get(id).points.length > MOST_POINTS) load(id);
  } else load(id);
});

// What was missed while the connection was away is in the history.
api.addEventListener("reconnected", () => [...runs.keys()].forEach(load));
