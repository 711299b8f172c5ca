// The places that an answer names, ready to be drawn and listed; and their colours.

const PALETTE = [
  "#ffd60a", "#0abeff", "#ff4655", "#5adc5a", "#ff78f0", "#ff911e", "#7878ff", "#00e1be", "#c8eb3c", "#cd9664",
];

/**
 * The annotations of a typed result: label, score, polygons (each [[x, y], ...] in pixels), category and
 * colour. One category has one colour; things without a label differ. A text has none.
 */
export function annotationsOf(result) {
  const found = read(result);
  const categories = [...new Set(found.map((each) => each.category))];
  return found.map((each, index) => {
    const place = each.category === "" ? index : categories.indexOf(each.category);
    return { ...each, index, colour: PALETTE[place % PALETTE.length] };
  });
}

function read(result) {
  if (result.kind === "boxes") {
    return result.detections.map(({ label, box: [x1, y1, x2, y2], score }) => ({
      label, score, category: label, area: false, polygons: [[[x1, y1], [x2, y1], [x2, y2], [x1, y2]]],
    }));
  }
  if (result.kind === "quads") {
    return result.regions.map(({ text, quad, score }) => ({
      label: text, score, category: "text", area: false, polygons: [points(quad)],
    }));
  }
  if (result.kind === "polygons") {
    return result.instances.map(({ label, polygons, score }) => ({
      label, score, category: label, area: true, polygons: polygons.map(points),
    }));
  }
  return [];
}

function points(numbers) {
  return Array.from({ length: numbers.length / 2 }, (_, index) => [numbers[2 * index], numbers[2 * index + 1]]);
}

/** Left, top, right and bottom of an annotation. */
export function boundsOf(annotation) {
  const all = annotation.polygons.flat();
  const xs = all.map(([x]) => x);
  const ys = all.map(([, y]) => y);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

/** 0.87 -> 87 %; an unknown score gives no text. */
export const percent = (score) => (score === null || score === undefined ? "" : `${Math.round(100 * score)} %`);
