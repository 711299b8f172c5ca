// Asks the cards' tasks: one by its endpoint or as a stream, several in one call of /analyze.

import { v2Request } from "./code.js";
import { base64 } from "./service.js";

/** Asks tasks about a picture. */
export class Asking {
  constructor(service, options, picture) {
    this.service = service;
    this.options = options;
    this.picture = picture;
  }

  /** Answers all cards; each shows its own answer or error. */
  async run(cards, signal) {
    const options = this.options.values;
    const asked = [];
    for (const card of cards) {
      try {
        asked.push([card, this.#request(card.task, card.given, options)]);
        card.wait();
      } catch (error) {
        card.fail(error.message);
      }
    }
    const alone = asked.filter(([card]) => asked.length === 1 || card.task.isPrompt);
    const together = asked.filter((each) => !alone.includes(each));
    await Promise.all([
      ...alone.map(([card, request]) => this.#guard([card], () => this.#one(card, request, signal))),
      together.length > 0 && this.#guard(together.map(([card]) => card), () => this.#analyze(together, options, signal)),
    ]);
  }

  /** The typed answer to another task about the same picture. */
  answer(task, given) {
    const request = this.#request(task, given, {});
    return this.service.post(task.path, { image: this.picture.file, ...request.fields });
  }

  #request(task, given, options) {
    if (this.picture.file === null) throw new Error("Choose a picture first.");
    const origin = document.baseURI.replace(/\/[^/]*$/, "");
    return { task, fields: { ...given, ...options }, file: this.picture.file.name, origin, hasKey: this.service.hasKey };
  }

  async #one(card, request, signal) {
    const { task, fields } = request;
    if (task.kind === "text" && (fields.num_beams === 1 || fields.do_sample === true)) {
      return this.#stream(card, request, signal);
    }
    const answer = await this.service.post(task.path, { image: this.picture.file, ...fields }, signal);
    card.show(answer, request, () => this.#original(request, answer.seed));
  }

  /** The text as it is generated; then the typed answer, which is the same: a drawn one has its seed. */
  async #stream(card, request, signal) {
    const seed = request.fields.do_sample ? { seed: Math.floor(Math.random() * 2 ** 32) } : {};
    const seeded = { ...request, fields: { ...seed, ...request.fields } };
    const { inputs, parameters } = v2Request(seeded.task, seeded.fields);
    const image = await base64(this.picture.file);
    let text = "";
    const original = await this.service.stream({ INPUT_IMAGE: image, ...inputs }, parameters, (piece) => {
      text += piece;
      card.stream(text);
    }, signal);
    const answer = await this.service.post(seeded.task.path, { image: this.picture.file, ...seeded.fields }, signal);
    card.show(answer, seeded, () => original);
  }

  async #analyze(asked, options, signal) {
    const tasks = asked.map(([card, { fields: { text, region } }]) => ({ task: card.task.name, text, region }));
    const body = { image: this.picture.file, tasks, ...options };
    const { answers } = await this.service.post("analyze", body, signal);
    asked.forEach(([card, request], index) => {
      const answer = answers[index];
      if (answer.error) card.fail(answer.error);
      else card.show(answer, request, () => this.#original(request, answer.seed));
    });
  }

  /** The original's JSON of the same answer. */
  async #original({ task, fields }, seed) {
    const { inputs, parameters } = v2Request(task, seed == null ? fields : { ...fields, seed });
    return this.service.infer({ INPUT_IMAGE: await base64(this.picture.file), ...inputs }, parameters);
  }

  async #guard(cards, work) {
    try {
      await work();
    } catch (error) {
      const message = error.name === "AbortError" ? "Stopped." : error.message;
      cards.forEach((card) => card.fail(message));
    }
  }
}
