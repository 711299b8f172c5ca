// Asks for an API key, which is returned and not stored.

import { byId } from "./dom.js";

/** A key, or null where the user closes the dialog. `again`: whether an unknown key was tried. */
export function askForKey(again) {
  const dialog = byId("key");
  const input = byId("key-value");
  byId("key-why").textContent = again ? "That key is not known to the service." : "The service answers with an API key only.";
  input.value = "";
  return new Promise((resolve) => {
    byId("key-form").onsubmit = (event) => {
      event.preventDefault();
      dialog.close(input.value.trim());
    };
    byId("key-cancel").onclick = () => dialog.close("");
    dialog.onclose = () => resolve(dialog.returnValue || null);
    dialog.returnValue = "";
    dialog.showModal();
    input.focus();
  });
}
