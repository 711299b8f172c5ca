// Tabs of text to copy, by pointer and keyboard as the ARIA practices have them. A text may be a promise.

import { el, serial } from "./dom.js";

/** `texts`: name -> a function that gives the text, or a promise of it, when its tab is first opened. */
export function tabs(texts) {
  const names = Object.keys(texts);
  const known = new Map();
  const output = el("pre", { tabIndex: 0, role: "tabpanel", id: `panel-${serial()}` });
  const copy = el("button", { type: "button", class: "quiet copy" }, "Copy");
  const buttons = names.map((name) => el("button", { type: "button", role: "tab" }, name));
  let open = null;

  async function show(index) {
    open = index;
    buttons.forEach((button, each) => {
      button.setAttribute("aria-selected", String(each === index));
      button.tabIndex = each === index ? 0 : -1;
    });
    const name = names[index];
    if (!known.has(name)) known.set(name, Promise.resolve().then(texts[name]));
    output.textContent = "…";
    let text;
    try {
      text = await known.get(name);
    } catch (error) {
      known.delete(name); // so that it is tried again
      text = error.message;
    }
    if (open === index) output.textContent = text;
  }

  buttons.forEach((button, index) => {
    button.setAttribute("aria-controls", output.id);
    button.onclick = () => show(index);
    button.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step === undefined) return;
      const next = (index + step + names.length) % names.length;
      show(next);
      buttons[next].focus();
    };
  });
  copy.onclick = async () => {
    copy.textContent = (await copied(output)) ? "Copied" : "Press Ctrl+C";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  };
  const list = el("div", { role: "tablist", class: "tabs", "aria-label": "The request and its answer" }, ...buttons);
  const details = el("details", { class: "code" }, el("summary", {}, "JSON and code"), list, copy, output);
  details.ontoggle = () => {
    if (details.open && open === null) show(0);
  };
  return details;
}

/** Whether the text is in the clipboard; without that, as in a page without TLS, it is selected. */
async function copied(output) {
  try {
    await navigator.clipboard.writeText(output.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(output);
    return document.execCommand("copy");
  }
}
