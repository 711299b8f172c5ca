// Where the picture comes from: a file, the clipboard, a camera, a sample. Knows nothing about tasks.

import { byId, el } from "./dom.js";

const SAMPLES = [
  ["scene_04.jpg", "A word and three shapes"],
  ["busy_00.jpg", "Six things, one of them a word"],
  ["scene_00.jpg", "Two turned words and a diamond"],
  ["coffee.jpg", "A photograph: a cup of coffee"],
];

/** The picture that tasks are asked about: a file, the address at which the page shows it, and its size in
 * pixels, null where the browser can't show its format. `onChange`: called for each new one. */
export class PictureSource {
  file = null;
  url = null;
  size = null;
  #onChange;

  constructor(onChange) {
    this.#onChange = onChange;
    byId("file").onchange = (event) => this.#take(event.target.files);
    byId("camera").onchange = (event) => this.#take(event.target.files);
    byId("choose").onclick = () => byId("file").click();
    byId("photograph").onclick = () => byId("camera").click();
    byId("samples").append(...SAMPLES.map(([name, what]) => this.#sample(name, what)));
    this.#listen();
  }

  /** Shows a sample: by default the first. */
  async choose(name = SAMPLES[0][0]) {
    const data = await (await fetch(`pages/${name}`)).blob();
    await this.#set(new File([data], name, { type: data.type }));
  }

  #sample(name, what) {
    const image = el("img", { src: `pages/${name}`, alt: what, loading: "lazy" });
    const choose = () => this.choose(name);
    return el("button", { type: "button", class: "sample", title: what, onclick: choose }, image);
  }

  #listen() {
    document.addEventListener("paste", (event) => this.#take(event.clipboardData?.files));
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) document.body.classList.remove("dropping");
    });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      document.body.classList.remove("dropping");
      this.#take(event.dataTransfer?.files);
    });
  }

  #take(files) {
    if (files?.length > 0) this.#set(files[0]);
  }

  async #set(file) {
    if (this.url) URL.revokeObjectURL(this.url);
    this.file = file;
    this.url = URL.createObjectURL(file);
    const image = new Image();
    image.src = this.url;
    try {
      await image.decode();
      this.size = { width: image.naturalWidth, height: image.naturalHeight };
    } catch {
      this.size = null; // TIFF, HEIC: the service reads them, the browser may not
    }
    const shown = this.size ? `${this.size.width} × ${this.size.height}` : "a format that browsers don't show";
    byId("chosen").textContent = `${file.name} · ${shown}`;
    for (const button of byId("samples").children) {
      button.setAttribute("aria-pressed", String(button.firstChild.src.endsWith(`/${file.name}`)));
    }
    this.#onChange();
  }
}
