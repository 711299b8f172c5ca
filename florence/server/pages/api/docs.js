// The API page: Swagger UI on /docs.json. It opens on an upload form in which a picture is chosen already, so
// that a click sends a real request.

const SAMPLE = "pages/scene_04.jpg";
const FIRST = ["operations", "Tasks", "object_detection"];

/** Chooses the sample in every upload field that appears, unless a picture is there. */
async function fillUploads(root) {
  const data = await (await fetch(SAMPLE)).blob();
  const file = new File([data], "scene_04.jpg", { type: data.type });
  const fill = () => {
    for (const input of root.querySelectorAll('input[type="file"]')) {
      if (input.dataset.filled || input.files.length > 0) continue;
      input.dataset.filled = "yes";
      const chosen = new DataTransfer();
      chosen.items.add(file);
      input.files = chosen.files;
      input.dispatchEvent(new Event("change", { bubbles: true }));
    }
  };
  fill();
  new MutationObserver(fill).observe(root, { childList: true, subtree: true });
}

/** Swagger UI has a dark style of its own, which waits for a class. */
function followTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
  dark.onchange = follow;
  follow();
}

/** Leaves fields empty that have no example: Swagger UI would fill in the least or the largest number. */
const emptyOptions = () => ({
  afterLoad() {
    const sample = this.fn.getSampleSchema;
    this.fn.getSampleSchema = (schema, ...rest) => {
      const { type, format, examples, properties } = schema?.toJS?.() ?? schema ?? {};
      if (examples || properties || format === "binary" || type === "object") return sample(schema, ...rest);
      return type === "array" ? [] : "";
    };
  },
});

/** Leaves out what was left empty, which Swagger UI would send as empty texts. */
function dropEmpty(request) {
  if (request.body instanceof FormData) {
    for (const [name, value] of [...request.body]) {
      if (value === "") request.body.delete(name);
    }
  }
  return request;
}

followTheme();
const ui = window.SwaggerUIBundle({
  url: "docs.json",
  domNode: document.querySelector("#api"),
  docExpansion: "list",
  tryItOutEnabled: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  syntaxHighlight: { activated: true },
  validatorUrl: null,
  plugins: [emptyOptions],
  requestInterceptor: dropEmpty,
  onComplete: () => {
    fillUploads(document.querySelector("#api"));
    ui.layoutActions.show(FIRST, true);
    setTimeout(() => document.querySelector(".opblock.is-open")?.scrollIntoView(), 0);
  },
});
