// The playground: joins the picture, the cards and the options, and sends requests on a click or Enter.

import { Asking } from "./asking.js";
import { Card } from "./card.js";
import { byId } from "./dom.js";
import { askForKey } from "./key.js";
import { Options } from "./options.js";
import { PictureSource } from "./picture.js";
import { Service, ServiceError } from "./service.js";
import { groundingOf, tasksOf } from "./tasks.js";

const FIRST = "object_detection";
const BESIDE = ["caption", "ocr_with_region", "dense_region_caption", "caption_to_phrase_grounding"];
const LOADING_MS = 2000;

const service = new Service(askForKey);
const cards = [];
let running = null;

const picture = new PictureSource(() => {
  running?.abort();
  for (const card of cards) card.picture(picture);
});

/** What the service says about itself, once its model is loaded. */
async function loaded() {
  for (;;) {
    try {
      return await service.get("info");
    } catch (error) {
      if (!(error instanceof ServiceError) || error.status !== 503) throw error;
      say("The model is being loaded…");
      await new Promise((resolve) => setTimeout(resolve, LOADING_MS));
    }
  }
}

function say(message, kind = "") {
  byId("status").textContent = message;
  byId("status").className = kind;
}

async function start() {
  const chosen = picture.choose();
  const info = await loaded();
  const document = await service.get("docs.json");
  const tasks = tasksOf(document);
  const options = new Options(document, info);
  const asking = new Asking(service, options, picture);
  say([info.checkpoint, info.device, info.dtype].join(" · "));
  byId("demo").hidden = info.checkpoint !== "demo";
  byId("first-options").append(options.first);
  byId("other-options").append(options.rest);
  byId("other-count").textContent = `${options.count} more`;
  byId("reset").onclick = () => options.clear();
  await chosen;

  const handlers = {
    onRemove: (card) => {
      cards.splice(cards.indexOf(card), 1);
      card.element.remove();
      arrange();
      byId("add").focus();
    },
    onGround: async (card, text) => {
      try {
        card.ground(text, await asking.answer(groundingOf(tasks), { text }));
      } catch (error) {
        say(error.message, "error");
      }
    },
  };

  function add(name) {
    const card = new Card(tasks, name, handlers);
    cards.push(card);
    byId("cards").append(card.element);
    card.picture(picture);
    arrange();
    return card;
  }

  async function run() {
    if (running) return running.abort();
    running = new AbortController();
    byId("run").textContent = "Stop";
    try {
      await asking.run(cards, running.signal);
    } finally {
      running = null;
      byId("run").textContent = "Run";
    }
  }

  byId("add").onclick = () => {
    const taken = cards.map((card) => card.task.name);
    const card = add(BESIDE.find((name) => !taken.includes(name)) ?? FIRST);
    card.element.querySelector("select").focus();
  };
  byId("run").onclick = run;
  byId("cards").onkeydown = (event) => {
    if (event.key === "Enter" && event.target.matches("input")) run();
  };
  add(FIRST);
  byId("run").disabled = byId("add").disabled = false;
}

function arrange() {
  byId("cards").classList.toggle("alone", cards.length === 1);
}

start().catch((error) => say(error.message, "error"));
