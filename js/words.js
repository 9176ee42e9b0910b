// The panel's words in the language of the page, from locales/*/main.json; in English where that has none.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

let translated = {};

/** Fetch them, once, before the first panel is made. */
export async function loadWords() {
  const locale = app.extensionManager.setting.get("Comfy.Locale") ?? "en";
  const all = await api.getCustomNodesI18n();
  translated = (all[locale] ?? all[locale.split("-")[0]])?.u1Panel ?? {};
}

/** The words for an English phrase, with {name} replaced by `values.name`. */
export const say = (phrase, values = {}) =>
  (translated[phrase] ?? phrase).replace(/\{(\w+)\}/g, (_, name) => values[name]);

/** So many seconds in words. */
export function duration(time) {
  const seconds = Math.round(time);
  const minutes = Math.floor(seconds / 60);
  if (minutes >= 60) return say("{hours} h {minutes} min", { hours: Math.floor(minutes / 60), minutes: minutes % 60 });
  return minutes ? say("{minutes} min {seconds} s", { minutes, seconds: seconds % 60 }) : say("{seconds} s", { seconds });
}
