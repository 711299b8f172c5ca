// A region on a picture: drawn with the pointer, or typed as four numbers.

import { el, serial, svg } from "./dom.js";

const CORNERS = ["x1", "y1", "x2", "y2"];

/** The region of a card, in pixels of the picture. */
export class Region {
  #size = { width: 1, height: 1 };
  #rectangle = svg("rect", { class: "region" });
  #inputs = CORNERS.map((name) => el("input", { type: "number", step: "1", min: "0", name, inputMode: "numeric" }));

  constructor() {
    this.layer = svg("svg", { class: "layer drawing", preserveAspectRatio: "none" }, this.#rectangle);
    const fields = this.#inputs.map((input, index) => {
      input.id = `${CORNERS[index]}-${serial()}`;
      input.oninput = () => this.#draw();
      return el("label", { for: input.id }, CORNERS[index], input);
    });
    const help = el("p", { class: "hint" }, "Draw a rectangle on the picture, or type its corners in pixels.");
    this.field = el("fieldset", { class: "region-field" }, el("legend", {}, "Region"), help, ...fields);
    this.#follow();
  }

  /** The four numbers, x1 < x2 and y1 < y2. */
  get value() {
    const [x1, y1, x2, y2] = this.#inputs.map((input) => Number(input.value));
    return [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];
  }

  set value(corners) {
    this.#inputs.forEach((input, index) => (input.value = String(Math.round(corners[index]))));
    this.#draw();
  }

  /** A new picture of that size; its middle is the region at first. */
  reset({ width, height }) {
    this.#size = { width, height };
    this.layer.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.#inputs.forEach((input, index) => (input.max = String(index % 2 ? height : width)));
    this.value = [width / 4, height / 4, (3 * width) / 4, (3 * height) / 4];
  }

  #draw() {
    const [x1, y1, x2, y2] = this.value;
    const sides = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
    for (const [name, value] of Object.entries(sides)) this.#rectangle.setAttribute(name, value);
  }

  #follow() {
    let start = null;
    this.layer.onpointerdown = (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      this.layer.setPointerCapture(event.pointerId);
      start = this.#at(event);
    };
    this.layer.onpointermove = (event) => {
      if (start !== null) this.value = [...start, ...this.#at(event)];
    };
    this.layer.onpointerup = this.layer.onpointercancel = () => {
      start = null;
    };
  }

  /** The pixel of the picture under the pointer, at its nearest edge where it is outside. */
  #at(event) {
    const box = this.layer.getBoundingClientRect();
    const { width, height } = this.#size;
    const x = ((event.clientX - box.left) / box.width) * width;
    const y = ((event.clientY - box.top) / box.height) * height;
    return [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
  }
}
