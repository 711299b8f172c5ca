// Draws annotations on a picture. Hovering or selecting one shows its label and score.

import { boundsOf, percent } from "./annotations.js";
import { el, svg } from "./dom.js";

const CROWD = 12; // with more, only the active one has its label

/** What lies on the picture of a card. */
export class Overlay {
  #layer = svg("svg", { class: "layer", "aria-hidden": "true", preserveAspectRatio: "none" });
  #plates = el("div", { class: "plates", "aria-hidden": "true" });
  #drawn = [];
  #size = { width: 1, height: 1 };
  #hidden = new Set();
  #selected = null;
  #hovered = null;

  /** `onActive`: called with the index of the annotation that is hovered or selected, or null. */
  constructor(onActive) {
    this.onActive = onActive;
    this.elements = [this.#layer, this.#plates];
  }

  /** Shows these annotations on a picture of that size in pixels, in place of others. */
  show(annotations, size) {
    this.#size = size;
    this.#hidden.clear();
    this.#selected = this.#hovered = null;
    this.#layer.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
    this.#drawn = annotations.map((annotation) => this.#draw(annotation));
    const smallestLast = [...this.#drawn].sort((one, other) => other.extent - one.extent);
    this.#layer.replaceChildren(...smallestLast.map((each) => each.shape));
    this.#plates.replaceChildren(...this.#drawn.map((each) => each.plate));
    this.#update();
  }

  /** Shows or hides a category. */
  toggle(category, shown) {
    this.#hidden[shown ? "delete" : "add"](category);
    this.#update();
  }

  /** Selects an annotation, or clears the selection. */
  select(index) {
    this.#selected = this.#selected === index ? null : index;
    this.#update();
  }

  /** The annotation that is pointed at; null: none. */
  hover(index) {
    this.#hovered = index;
    this.#update();
  }

  #draw(annotation) {
    const shape = svg("g", { class: annotation.area ? "shape area" : "shape" });
    shape.style.setProperty("--colour", annotation.colour);
    for (const polygon of annotation.polygons) {
      const points = polygon.map((point) => point.join(",")).join(" ");
      shape.append(svg("polygon", { points, class: "casing" }), svg("polygon", { points, class: "line" }));
    }
    shape.onpointerenter = () => this.hover(annotation.index);
    shape.onpointerleave = () => this.hover(null);
    shape.onclick = () => this.select(annotation.index);
    const [left, top, right, bottom] = boundsOf(annotation);
    const plate = el("span", { class: "plate" });
    plate.style.setProperty("--colour", annotation.colour);
    this.#place(plate, left, top, right);
    return { annotation, shape, plate, extent: (right - left) * (bottom - top) };
  }

  #place(plate, left, top, right) {
    const { width, height } = this.#size;
    if (left > width * 0.6) plate.style.right = `${Math.max(0, 100 - (100 * right) / width)}%`;
    else plate.style.left = `${Math.max(0, (100 * left) / width)}%`;
    plate.style.top = `${Math.max(0, (100 * top) / height)}%`;
    if (top > height * 0.09) plate.classList.add("above");
  }

  #update() {
    const active = this.#hovered ?? this.#selected;
    for (const { annotation, shape, plate } of this.#drawn) {
      const gone = this.#hidden.has(annotation.category);
      const isActive = annotation.index === active;
      shape.classList.toggle("gone", gone);
      shape.classList.toggle("active", isActive);
      shape.classList.toggle("quiet", active !== null && !isActive);
      const words = isActive ? `${annotation.label} ${percent(annotation.score)}`.trim() : annotation.label;
      plate.textContent = words;
      plate.classList.toggle("active", isActive);
      plate.hidden = gone || words === "" || (!isActive && (active !== null || this.#drawn.length > CROWD));
    }
    this.onActive(active, this.#selected);
  }
}
