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
