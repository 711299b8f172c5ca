// The tasks that the service has, read from its OpenAPI document: those of the checkpoint are among them.

const ACRONYMS = /\b(ocr|vqa|json)\b/gi;
const GROUNDING = "<CAPTION_TO_PHRASE_GROUNDING>";

const GROUPS = [
  ["Describe", (task) => task.kind === "text" && task.input === "none" && !task.isReading],
  ["Find", (task) => ["boxes", "boxes_or_polygons"].includes(task.kind)],
  ["Segment", (task) => task.kind === "polygons"],
  ["Read", (task) => task.isReading && task.input === "none"],
  ["Ask about a region", (task) => task.input === "region"],
];
const OTHERS = "More";

/** A task: its name and token, its path, what it takes (none, text, region or prompt) and answers with. */
export class Task {
  constructor(path, operation) {
    const facts = operation["x-florence-task"];
    this.path = path.slice(1);
    this.name = this.path.split("/").pop();
    this.summary = operation.summary;
    this.token = facts?.token ?? null;
    this.input = facts?.input ?? "prompt";
    this.kind = facts?.kind ?? null;
    this.declared = this.path.includes("/");
    const example = operation.requestBody.content["application/json"].example;
    this.example = example.text ?? example.prompt ?? null;
  }

  get isPrompt() {
    return this.token === null;
  }

  get isReading() {
    return /ocr/i.test(this.name);
  }

  /** `caption_to_phrase_grounding` -> Caption to phrase grounding. */
  get title() {
    if (this.isPrompt) return "A prompt of your own";
    const words = this.name.replaceAll("_", " ").replace(ACRONYMS, (word) => word.toUpperCase());
    return words[0].toUpperCase() + words.slice(1);
  }

  get group() {
    if (this.isPrompt) return OTHERS;
    if (this.declared) return "Of this checkpoint";
    return (GROUPS.find(([, holds]) => holds(this)) ?? [OTHERS])[0];
  }

  /** Whether its answer is a text whose phrases can be grounded: a caption. */
  get captions() {
    return !this.isPrompt && this.kind === "text" && this.input === "none" && !this.isReading;
  }
}

/** All tasks of the document, in its order. */
export function tasksOf(document) {
  const paths = Object.entries(document.paths);
  return paths
    .filter(([path, { post }]) => post && (post["x-florence-task"] || path === "/prompt"))
    .map(([path, { post }]) => new Task(path, post));
}

/** The tasks by group, each group once. */
export function grouped(tasks) {
  const order = [...GROUPS.map(([name]) => name), "Of this checkpoint", OTHERS];
  return order
    .map((name) => [name, tasks.filter((task) => task.group === name)])
    .filter(([, members]) => members.length > 0);
}

/** The task that grounds phrases, if the service has it. */
export const groundingOf = (tasks) => tasks.find((task) => task.token === GROUNDING);
