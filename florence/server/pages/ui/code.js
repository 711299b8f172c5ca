// One request as programs: curl, the Python client, and Python over the v2 protocol, ready to copy.

const KEY = "FLORENCE_API_KEY";

/**
 * `asked`: task, fields (text, region, prompt, answer_as and the options), file (the picture's name), origin
 * (the service's address) and hasKey.
 */
export function programs(asked) {
  return { curl: curl(asked), python: python(asked), v2: v2(asked) };
}

function curl({ task, fields, file, origin, hasKey }) {
  const lines = ["curl", ...(hasKey ? [`-H "Authorization: Bearer $${KEY}"`] : []), `-F image=@${shell(file)}`];
  for (const [name, value] of Object.entries(fields)) {
    lines.push(`--form-string ${shell(`${name}=${typeof value === "string" ? value : JSON.stringify(value)}`)}`);
  }
  return [...lines, shell(`${origin}/${task.path}`)].join(" \\\n  ");
}

function python({ task, fields, file, origin }) {
  const { text, region, prompt, ...options } = fields;
  const first = task.declared ? [literal(task.name), literal(file)] : [literal(file)];
  if (text !== undefined) first.push(literal(text));
  if (prompt !== undefined) first.push(literal(prompt));
  const named = Object.entries(region === undefined ? options : { region, ...options });
  const given = [...first, ...named.map(([name, value]) => `${name}=${literal(value)}`)].join(", ");
  const method = task.declared ? "task" : task.name;
  return [
    "from florence.client import Client",
    "",
    `with Client(${literal(origin)}) as client:  # a key comes from ${KEY}`,
    `    answer = client.${method}(${given})`,
    "    print(answer.result)",
    `    answer.draw(${literal(file)}).save("answer.png")`,
  ].join("\n");
}

function v2({ task, fields, file, origin, hasKey }) {
  const { inputs, parameters } = v2Request(task, fields);
  const headers = hasKey ? [`    headers={"Authorization": f"Bearer {os.environ['${KEY}']}"},`] : [];
  return [
    `import base64, json, ${hasKey ? "os, " : ""}pathlib, requests`,
    "",
    "values = {",
    `    "INPUT_IMAGE": base64.b64encode(pathlib.Path(${literal(file)}).read_bytes()).decode(),`,
    ...Object.entries(inputs).map(([name, value]) => `    ${literal(name)}: ${literal(value)},`),
    "}",
    "inputs = [",
    '    {"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [value]} for name, value in values.items()',
    "]",
    "response = requests.post(",
    `    ${literal(`${origin}/v2/models/florence2/infer`)},`,
    `    json={"inputs": inputs, "parameters": ${literal(parameters)}},`,
    ...headers,
    ").json()",
    'print(json.loads(response["outputs"][0]["data"][0]))',
  ].join("\n");
}

/** A request's inputs, without the picture, and parameters in the v2 protocol; pictures as the typed endpoints
 * see them, so that both give the same answer. */
export function v2Request(task, { text, region, prompt, answer_as, ...options }) {
  const inputs = { TASK_PROMPT: task.token ?? prompt };
  const given = text ?? (region && region.join(", "));
  if (given !== undefined) inputs.TEXT_PROMPT = given;
  const plain = Object.entries(options).map(([name, value]) => [
    name,
    Array.isArray(value) ? value.join(", ") : value,
  ]);
  return { inputs, parameters: { pictures: "seen", ...Object.fromEntries(plain) } };
}

function shell(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

/** A value as Python writes it. */
function literal(value) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (value !== null && typeof value === "object") {
    return `{${Object.entries(value).map(([name, each]) => `${literal(name)}: ${literal(each)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}
