// For tests of the panel's code: its modules, a panel on the page, answers and news at will. Run in the page.
async () => {
  const { api } = await import("/scripts/api.js");
  const [runs, words, chart, panels, previews] = await Promise.all(
    ["runs", "words", "chart", "panel", "previews"].map((name) => import(`/extensions/u1-style-studio/${name}.js`)),
  );
  const panel = panels.makePanel();
  document.body.append(panel.element);
  Object.assign(panel.element.style, { position: "fixed", inset: "0 50% 0 0" });

  const fetchApi = api.fetchApi.bind(api);

  /** From now on our requests, not the page's own, wait here for `answer(body, status, words)`, a body of text as it
   * is, or `fail(words)`. */
  function answering() {
    const asked = [];
    api.fetchApi = (path, options) => {
      if (!path.startsWith("/u1/")) return fetchApi(path, options);
      return new Promise((resolve, reject) => {
        const answer = (body, status = 200, statusText = "OK") =>
          resolve(new Response(typeof body === "string" ? body : JSON.stringify(body), { status, statusText }));
        asked.push({ path, answer, fail: (words) => reject(new TypeError(words)) });
      });
    };
    return asked;
  }

  /** News of a run, as the websocket brings them. */
  function tell(id, state, step, points = [], marks = []) {
    const detail = { id, status: { id, state, step, steps: 10 }, points, marks };
    api.dispatchEvent(new CustomEvent("u1.run", { detail }));
  }

  window.u1 = { runs, words, chart, previews, panel, answering, tell };
};
