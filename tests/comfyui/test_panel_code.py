"""The panel's code by itself, in ComfyUI's page: what it makes of the server's answers and of news of a run."""

from pathlib import Path

import pytest

HELPERS = Path(__file__).with_name("panel_code.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(browser, server):
    page = browser.new_page(reduced_motion="reduce")
    page.goto(server.url)
    page.wait_for_function("() => window.app?.graph && window.app.extensionManager", timeout=60_000)
    page.evaluate(HELPERS)
    yield page
    page.close()


def test_two_who_ask_for_one_run_get_one_answer_and_no_news_is_lost(page):
    told = page.evaluate("""async () => {
      const { runs, answering, tell } = window.u1;
      const asked = answering();
      const both = [runs.load("two"), runs.load("two")];
      tell("two", "running", 4, [[4, 0.4]]);
      asked[0].answer({ status: { id: "two", state: "running", step: 3 }, points: [[3, 0.3]], marks: [] });
      const answers = await Promise.all(both);
      tell("two", "finished", 5, [[5, 0.5]]);
      return { asked: asked.length, answers, ...runs.known("two") };
    }""")
    assert told["asked"] == 1
    assert told["answers"] == [None, None]
    assert told["status"]["state"] == "finished"
    assert told["points"] == [[3, 0.3], [4, 0.4], [5, 0.5]]


@pytest.mark.parametrize(
    ("body", "words"),
    [('"<h1>Bad Gateway</h1>"', "502 Bad Gateway"), ('{ error: "there is no run" }', "there is no run")],
)
def test_an_answer_that_is_no_run_is_told_in_the_panel_which_shows_nothing_else(page, body, words):
    shown = page.evaluate(f"""async () => {{
      const {{ answering, panel }} = window.u1;
      const asked = answering();
      const load = panel.show("lost");
      asked[0].answer({body}, 502, "Bad Gateway");
      await load;
      return panel.element.innerText.trim().split(/\\n+/);
    }}""")
    assert shown == ["lost", words]


def test_what_came_of_a_button_is_told_when_the_server_is_away(page):
    assert (
        page.evaluate("""async () => {
      const asked = u1.answering();
      const done = u1.runs.act("two", "pause");
      asked[0].fail("Failed to fetch");
      return await done;
    }""")
        == "Failed to fetch"
    )


def test_a_new_preview_leaves_the_focus_where_it_is(page):
    told = page.evaluate("""() => {
      const previews = u1.previews.makePreviews();
      document.body.append(previews.element);
      const [pictures, strip] = previews.element.children;
      const mark = (step) => ({ step, files: [`${step}.png`], base_files: ["0.png"], prompts: ["a house"] });
      const focus = () => document.activeElement.title || document.activeElement.href?.split("/").at(-1);
      const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
      const told = [];
      previews.show("drawn", [mark(1), mark(2)]);
      strip.lastChild.focus();
      previews.show("drawn", [mark(1), mark(2), mark(3)]);
      told.push(focus(), strip.querySelector("[aria-selected=true]").title);
      press("ArrowLeft");
      previews.show("drawn", [1, 2, 3, 4].map(mark));
      told.push(focus(), strip.querySelector("[aria-selected=true]").title);
      press("End");
      pictures.querySelector("a").focus();
      previews.show("drawn", [1, 2, 3, 4, 5].map(mark));
      told.push(focus(), strip.children.length);
      previews.show("drawn", [mark(1)]);
      told.push(focus(), strip.children.length);
      previews.element.remove();
      return told;
    }""")
    assert told == ["step 2", "step 3", "step 1", "step 1", "5.png", 6, "1.png", 2]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (119.7, "2 min 0 s"),
        (3599.4, "59 min 59 s"),
        (3599.8, "1 h 0 min"),
        (7325, "2 h 2 min"),
    ],
)
def test_a_time_is_rounded_before_it_is_put_in_words(page, seconds, words):
    assert page.evaluate("(seconds) => u1.words.duration(seconds)", seconds) == words


def test_a_chart_of_very_many_points_is_drawn(page):
    """A call of more arguments than some 120,000 overflows the browser's stack."""
    drawn = page.evaluate("""() => {
      const canvas = u1.panel.element.querySelector("canvas");
      const many = Array.from({ length: 200_000 }, (_, index) => index + 1);
      u1.panel.element.classList.remove("u1-unknown");
      u1.chart.drawChart(canvas, many.map((step) => [step, 1 / step]), many.map((step) => ({ step, percent: 90 })));
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      return data.some((channel) => channel > 0);
    }""")
    assert drawn


def test_a_chart_that_grows_long_is_asked_for_again_as_the_server_thins_it(page):
    told = page.evaluate("""async () => {
      const { runs, answering, tell } = u1;
      const asked = answering();
      const first = runs.load("long");
      asked[0].answer({ status: { id: "long", state: "running", step: 1 }, points: [[1, 1]], marks: [] });
      await first;
      const points = (from, to) => Array.from({ length: to - from + 1 }, (_, index) => [from + index, 1]);
      tell("long", "running", 2000, points(2, 2000));
      const before = asked.length;
      tell("long", "running", 2001, points(2001, 2001));
      tell("long", "running", 2002, points(2002, 2002));
      const thinned = [[1000, 1], [2001, 1]];
      asked[1].answer({ status: { id: "long", state: "running", step: 2001 }, points: thinned, marks: [] });
      await runs.load("long");
      return { before, after: asked.length, path: asked[1].path, points: runs.known("long").points };
    }""")
    assert told == {"before": 1, "after": 2, "path": "/u1/runs/long", "points": [[1000, 1], [2001, 1], [2002, 1]]}
