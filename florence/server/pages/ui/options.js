// The form of a request's options, made from the OpenAPI document: an option that the service declares
// appears by itself.

import { el, serial } from "./dom.js";

const FIRST = ["num_beams", "max_new_tokens", "tiles", "min_score"];
const NOT_OPTIONS = ["image", "text", "region", "prompt", "answer_as"];
const UNSET = "default";

/** The options of all tasks: their fields, and what is filled in. */
export class Options {
  #fields = new Map();

  /** `document`: OpenAPI's. `info`: the answer of /info, with the defaults. */
  constructor(document, info) {
    const { properties } = document.components.schemas.PlainInput;
    const names = Object.keys(properties).filter((name) => !NOT_OPTIONS.includes(name));
    const first = FIRST.filter((name) => names.includes(name));
    const rest = names.filter((name) => !first.includes(name));
    const usual = info?.generation ?? {};
    const fields = (list) =>
      list.map((name) => this.#field(name, properties[name], usual[name], choices(info, name)));
    this.first = el("div", { class: "options" }, ...fields(first));
    this.rest = el("div", { class: "options" }, ...fields(rest));
    this.count = rest.length;
  }

  /** The options that are filled in, as values of JSON. */
  get values() {
    const filled = [...this.#fields].map(([name, [input, read]]) => [name, input.value, read]);
    return Object.fromEntries(
      filled.filter(([, value]) => value !== "").map(([name, value, read]) => [name, read(value)]),
    );
  }

  /** Empties all fields. */
  clear() {
    for (const [input] of this.#fields.values()) input.value = "";
  }

  #field(name, schema, usual, known) {
    const kinds = schema.anyOf ?? [schema];
    const [input, read] = inputOf(kinds, usual, known);
    input.id = `option-${name}-${serial()}`;
    input.name = name;
    this.#fields.set(name, [input, read]);
    const hint = el("small", { id: `${input.id}-hint` }, schema.description ?? "");
    input.setAttribute("aria-describedby", hint.id);
    return el("div", { class: "option" }, el("label", { for: input.id }, name), input, hint);
  }
}

/** The names that `/info` lists for an option: those of `adapters` for `adapter`. */
function choices(info, name) {
  const listed = info?.[`${name}s`];
  return Array.isArray(listed) ? listed.map((each) => each.name ?? each) : [];
}

/** The field for an option's JSON schema, and how its text becomes a value. */
function inputOf(kinds, usual, known) {
  const types = kinds.map((kind) => kind.type);
  const fixed = kinds.flatMap((kind) => kind.enum ?? (kind.const ? [kind.const] : []));
  const number = kinds.find((kind) => kind.type === "integer" || kind.type === "number");
  if (number && !types.includes("string") && !types.includes("boolean")) {
    return [numberInput(number, usual), Number];
  }
  if (types.includes("boolean")) {
    return [selection(["true", "false", ...fixed], usual), (text) => (fixed.includes(text) ? text : text === "true")];
  }
  if (known.length > 0 || fixed.length > 0) return [selection([...fixed, ...known], usual), String];
  if (types.includes("array")) {
    const input = el("input", { type: "text", placeholder: "separated by commas" });
    return [input, (text) => text.split(",").map((part) => part.trim()).filter(Boolean)];
  }
  return [el("input", { type: "text", placeholder: UNSET }), String];
}

function numberInput(schema, usual) {
  const whole = schema.type === "integer";
  return el("input", {
    type: "number",
    min: schema.minimum ?? "",
    max: schema.maximum ?? "",
    step: whole ? "1" : "any",
    inputMode: whole ? "numeric" : "decimal",
    placeholder: usual === undefined || usual === null ? UNSET : `${usual}`,
  });
}

function selection(values, usual) {
  const named = usual === undefined || usual === null ? UNSET : `${UNSET}: ${usual}`;
  return el(
    "select",
    {},
    el("option", { value: "" }, named),
    ...values.map((value) => el("option", { value }, value)),
  );
}
