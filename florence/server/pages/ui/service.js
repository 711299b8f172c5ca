// Requests to the service. Knows HTTP, the API key, and the form of answers; nothing about the page.

const V2 = "v2/models/florence2";

/** An error with a message for the user. `status`: HTTP's, 0 where there was no answer. */
export class ServiceError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The service that this page comes from. `askForKey`: gives a key when one is needed, or null. */
export class Service {
  #key = null; // in memory only: gone with the page
  #askForKey;

  constructor(askForKey) {
    this.#askForKey = askForKey;
  }

  get hasKey() {
    return this.#key !== null;
  }

  /** A document of the service. */
  async get(path) {
    return (await this.#send(path, {})).json();
  }

  /** A form to an endpoint; the JSON that it answers. */
  async post(path, fields, signal) {
    return (await this.#send(path, { method: "POST", body: formOf(fields), signal })).json();
  }

  /** The original's JSON of an answer, over the v2 protocol. `inputs`: INPUT_IMAGE, TASK_PROMPT and so on. */
  async infer(inputs, parameters, signal) {
    const body = {
      inputs: Object.entries(inputs).map(([name, value]) => tensor(name, value)),
      parameters,
    };
    const reply = await this.#send(`${V2}/infer`, { method: "POST", body: JSON.stringify(body), signal });
    return JSON.parse((await reply.json()).outputs[0].data[0]);
  }

  /** As `infer`, with the text piece by piece while it is generated. */
  async stream(inputs, parameters, onText, signal) {
    const body = JSON.stringify({ ...inputs, ...parameters });
    const reply = await this.#send(`${V2}/generate_stream`, { method: "POST", body, signal });
    let last = null;
    for await (const event of events(reply.body)) {
      if (event.error) throw new ServiceError(event.error, 500);
      if (event.text_output !== undefined) onText(event.text_output);
      if (event.PARSED_JSON !== undefined) last = JSON.parse(event.PARSED_JSON);
    }
    if (last === null) throw new ServiceError("The answer broke off. Is the service still running?", 0);
    return last;
  }

  async #send(path, options) {
    for (;;) {
      const reply = await this.#once(path, options);
      if (reply.ok) return reply;
      if (reply.status === 401) {
        const key = await this.#askForKey(this.hasKey);
        if (key) {
          this.#key = key;
          continue;
        }
      }
      throw await failure(reply);
    }
  }

  async #once(path, options) {
    const headers = this.#key === null ? {} : { Authorization: `Bearer ${this.#key}` };
    try {
      return await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServiceError("The service can't be reached. Is it still running?", 0);
    }
  }
}

function tensor(name, value) {
  return { name, shape: [1, 1], datatype: "BYTES", data: [value] };
}

function formOf(fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Blob) form.append(name, value, value.name || "picture");
    else form.append(name, typeof value === "string" ? value : JSON.stringify(value));
  }
  return form;
}

async function failure(reply) {
  let message = "";
  try {
    message = (await reply.json()).error;
  } catch {
    message = `The service answered with status ${reply.status}.`;
  }
  if (reply.status === 413) message = `This is too large: ${message}`;
  if (reply.status === 503) message = `The service is busy: ${message}`;
  return new ServiceError(message, reply.status);
}

/** The JSON of each server-sent event. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    waiting += value;
    const parts = waiting.split("\n\n");
    waiting = parts.pop();
    for (const part of parts) yield JSON.parse(part.replace(/^data: /, ""));
  }
}

/** A picture's bytes in base64, as the v2 protocol takes them. */
export function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new ServiceError("The picture can't be read any more. Choose it again.", 0));
    reader.readAsDataURL(blob);
  });
}
