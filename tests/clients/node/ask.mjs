// Node's fetch and grpc-js: `ask.mjs URL GRPC PICTURE DESCRIPTORS` prints what each saw, as JSON.
// DESCRIPTORS: the v2 protocol's FileDescriptorSet, as the test writes it.
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [url, address, picturePath, descriptorsPath] = process.argv.slice(2);
const picture = readFileSync(picturePath);
const seen = {};

const live = await fetch(`${url}/v2/health/live`);
seen["fetch: live"] = (await live.json()).live;

const form = new FormData();
form.append("image", new Blob([picture]), "picture.png");
const typed = await fetch(`${url}/caption`, { method: "POST", body: form });
seen["fetch: a form"] = (await typed.json()).result.text;

const image = picture.toString("base64");
const json = await fetch(`${url}/caption`, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ image }),
});
seen["fetch: typed JSON"] = (await json.json()).result.text;

const inputs = Object.entries({ INPUT_IMAGE: image, TASK_PROMPT: "<CAPTION>" }).map(([name, value]) => ({
  name, shape: [1, 1], datatype: "BYTES", data: [value],
}));
const infer = await fetch(`${url}/v2/models/florence2/infer`, { method: "POST", body: JSON.stringify({ inputs }) });
seen["fetch: infer"] = JSON.parse((await infer.json()).outputs[0].data[0])["<CAPTION>"];

const streamed = await fetch(`${url}/v2/models/florence2/generate_stream`, {
  method: "POST",
  body: JSON.stringify({ INPUT_IMAGE: image, TASK_PROMPT: "<CAPTION>", num_beams: 1 }),
});
let events = "";
for await (const piece of streamed.body.pipeThrough(new TextDecoderStream())) events += piece;
seen["fetch: a stream's last event"] = events.trimEnd().split("\n\n").at(-1).includes("PARSED_JSON");

const descriptors = loader.loadFileDescriptorSetFromBuffer(readFileSync(descriptorsPath), { keepCase: true });
const { inference } = grpc.loadPackageDefinition(descriptors);
const client = new inference.GRPCInferenceService(address, grpc.credentials.createInsecure());
const call = (name, message) =>
  new Promise((resolve, reject) =>
    client[name](message, { deadline: Date.now() + 60_000 }, (error, reply) => (error ? reject(error) : resolve(reply))),
  );
seen["grpc-js: ready"] = (await call("ServerReady", {})).ready;

const packed = (bytes) => {
  const length = Buffer.alloc(4);
  length.writeUInt32LE(bytes.length);
  return Buffer.concat([length, bytes]);
};
const message = (task) => ({
  model_name: "florence2",
  inputs: ["INPUT_IMAGE", "TASK_PROMPT"].map((name) => ({ name, datatype: "BYTES", shape: [1, 1] })),
  raw_input_contents: [packed(picture), packed(Buffer.from(task))],
});
const caption = (reply) => JSON.parse(reply.raw_output_contents[0].subarray(4).toString())["<CAPTION>"];
seen["grpc-js: caption"] = caption(await call("ModelInfer", message("<CAPTION>")));
const refused = await call("ModelInfer", message("<NOPE>")).catch((error) => error);
seen["grpc-js: an error's status"] = refused.code === grpc.status.INVALID_ARGUMENT;

const stream = client.ModelStreamInfer({ deadline: Date.now() + 60_000 });
stream.write(message("<CAPTION>"));
stream.end();
for await (const reply of stream) seen["grpc-js: a stream"] = caption(reply.infer_response);
client.close();

console.log(JSON.stringify(seen));
