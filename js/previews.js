// A run's previews by step: a strip of small ones to choose from, and the chosen step's pictures in full.

import { previewUrl } from "./runs.js";
import { say } from "./words.js";

/** {element, show(id, marks)}: the newest step is shown until another one is chosen. */
export function makePreviews() {
  const element = document.createElement("div");
  element.className = "u1-previews";
  element.innerHTML = `<div class="u1-pictures"></div><div class="u1-strip" role="listbox" aria-label="${say("previews by step")}"
    aria-orientation="horizontal"></div>`;
  const [pictures, strip] = element.children;
  let shown = { id: "", looks: [] };
  let chosen = -1; // -1 is the newest

  function choose(place) {
    chosen = place >= shown.looks.length - 1 ? -1 : Math.max(0, place);
    render();
    strip.querySelector("[aria-selected=true]")?.focus();
  }

  strip.addEventListener("keydown", (event) => {
    const turn = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (turn === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    choose([...strip.children].indexOf(event.target) + turn);
  });

  const place = () => (chosen < 0 ? shown.looks.length - 1 : chosen);

  function render() {
    element.hidden = !shown.looks.length;
    const look = shown.looks[place()];
    if (!look) return;
    fill(strip, shown.looks, (one, number) => {
      const button = Object.assign(document.createElement("button"), { type: "button", title: one.name });
      button.setAttribute("role", "option");
      button.append(picture(one.files[0], `${one.name}, ${one.prompts[0]}`), label(one.name));
      button.addEventListener("click", () => choose(number));
      return button;
    });
    [...strip.children].forEach((button, number) => {
      button.setAttribute("aria-selected", number === place());
      button.tabIndex = number === place() ? 0 : -1;
    });
    if (chosen < 0 && !strip.matches(":hover, :focus-within")) strip.scrollLeft = strip.scrollWidth;
    const focused = [...pictures.querySelectorAll("a")].indexOf(document.activeElement);
    fill(pictures, [look], () => {
      const figures = look.files.map((name, number) => {
        const figure = document.createElement("figure");
        const link = Object.assign(document.createElement("a"), { href: previewUrl(shown.id, name), target: "_blank" });
        link.append(picture(name, `${look.name}, ${look.prompts[number]}`));
        const caption = Object.assign(document.createElement("figcaption"), { textContent: look.prompts[number] });
        caption.title = look.prompts[number];
        figure.append(link, caption);
        return figure;
      });
      const row = document.createElement("div");
      row.append(...figures);
      return row;
    });
    pictures.querySelectorAll("a")[focused]?.focus({ preventScroll: true });
  }

  /** Have `parent` show `looks`; what does so already stays, as it may have the focus. */
  function fill(parent, looks, make) {
    looks.forEach((look, number) => {
      const key = JSON.stringify([shown.id, look]);
      const there = parent.children[number];
      if (there?.dataset.key === key) return;
      const made = make(look, number);
      made.dataset.key = key;
      if (there) there.replaceWith(made);
      else parent.append(made);
    });
    while (parent.children.length > looks.length) parent.lastChild.remove();
  }

  const picture = (name, alt) => Object.assign(new Image(), { src: previewUrl(shown.id, name), alt, loading: "lazy" });

  return {
    element,
    show(id, marks) {
      if (id !== shown.id) chosen = -1;
      shown = { id, looks: looksOf(marks) };
      render();
    },
  };
}

/** Previews as {name, files, prompts}: the untrained model's first, then by step. */
function looksOf(marks) {
  const previews = marks.filter((mark) => "files" in mark);
  if (!previews.length) return [];
  const { base_files: files, prompts } = previews[0];
  const looks = previews.map((mark) => ({ name: say("step {step}", mark), files: mark.files, prompts: mark.prompts }));
  return [{ name: say("untrained"), files, prompts }, ...looks];
}

const label = (textContent) => Object.assign(document.createElement("span"), { textContent });
