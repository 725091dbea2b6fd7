// The state of the page: suspects, decisions about them, and filters.

const byId = (id) => document.getElementById(id);
const AUDIT = JSON.parse(byId("audit").textContent);
const SUSPECT = 0.5;
const VERDICTS = ["wrong", "right", "unsure"];

// Columns of a row; audit rows are arrays because ten thousand objects would repeat every key.
const rows = AUDIT.rows.map((values, place) => {
  const row = { place };
  AUDIT.columns.forEach((name, i) => { row[name] = values[i]; });
  row.kind = AUDIT.kinds[row.kind];
  return row;
});

// The crops are most of the page's bytes: they are parsed after the first paint.
let crops = null;
function cropOf(row) {
  if (crops === null) crops = JSON.parse(byId("crops").textContent);
  return crops[row.place];
}

// Kinds in the order of their list, as far as there are any.
const KINDS = AUDIT.kinds.filter((kind) => rows.some((row) => row.kind === kind));
const MISSING = "missing_object";
const GOES = ["no_object", "duplicate"]; // whose box is suggested to be removed
const MOVES = ["misplaced_box", MISSING]; // whose suggestion is a box

const label = (id) => (id === null ? null : AUDIT.classes[id]);
const kindName = (kind) => kind.replace("_", " ");
// The class that a suspect should have; null where its box should go.
const suggestionOf = (row) => (GOES.includes(row.kind) ? null : row.suggested);
const fixed = (value, digits) => (value === null ? "–" : value.toFixed(digits));
const percent = (value, digits) => `${value === null ? "–" : (100 * value).toFixed(digits)} %`;
const imageName = (row) => `${AUDIT.datasets[row.dataset]}/${row.image_id}`;

// All text goes through textContent: names of classes and files are data, never markup.
function element(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== "") node.textContent = text;
  return node;
}

// ---- decisions ---------------------------------------------------------------------------------

const VERSION = 1;
// Place in rows -> {verdict, label, box}; label is a class id or null, box that to be or null.
const decisions = new Map();
// Key -> entry of a file: decisions on annotations of these datasets that this page does not hold,
// because it is a shorter list than the one they were made in. They are saved with the others.
const elsewhere = new Map();
// Of missing objects, which have no place in a file, the box tells them apart.
const keyOf = (dataset, image, index, kind, box) => JSON.stringify(
  [dataset, String(image), index, kind ?? "wrong_class", index < 0 ? box : null]);
const keyOfRow = (row) => keyOf(
  AUDIT.datasets[row.dataset], row.image_id, row.index, row.kind, row.suggested_bbox);
const history = [];
const storageKey = `sl_detectron label audit ${AUDIT.fingerprint}`;

function decide(row, verdict, correction) {
  history.push([row.place, decisions.get(row.place)]);
  const box = MOVES.includes(row.kind) ? row.suggested_bbox : null;
  if (verdict) decisions.set(row.place, { verdict, label: correction, box });
  else decisions.delete(row.place);
  remember();
}

function takeBack() {
  const last = history.pop();
  if (!last) return null;
  const [place, before] = last;
  if (before) decisions.set(place, before);
  else decisions.delete(place);
  remember();
  return rows[place];
}

function exported() {
  const entries = [...decisions].sort((a, b) => a[0] - b[0]).map(([place, decision]) => {
    const row = rows[place];
    const wrong = decision.verdict === "wrong";
    return {
      dataset: AUDIT.datasets[row.dataset], image_id: row.image_id, kind: row.kind,
      index: row.index, bbox: row.bbox, given: label(row.label), verdict: decision.verdict,
      label: wrong ? label(decision.label) : null,
      box: row.kind === MISSING || (wrong && decision.label !== null) ? decision.box : null,
    };
  });
  entries.push(...elsewhere.values());
  return { version: VERSION, classes: AUDIT.classes, sources: AUDIT.sources, decisions: entries };
}

function checkFile(data) {
  if (data?.version !== VERSION || !Array.isArray(data.classes) || !Array.isArray(data.decisions)) {
    throw new Error("it is not a file of decisions");
  }
  const missing = data.classes.filter((name) => !AUDIT.classes.includes(name));
  const lacking = AUDIT.classes.filter((name) => !data.classes.includes(name));
  if (missing.length || lacking.length) {
    const parts = [["this audit has no class", missing], ["it has no class", lacking]];
    throw new Error(parts.filter(([, names]) => names.length)
      .map(([text, names]) => `${text} ${names.join(", ")}`).join("; "));
  }
}

// A class that is unknown here must not become null, which takes the box away.
const isBox = (value) => Array.isArray(value) && value.length === 4;
const isDecision = (entry) => VERDICTS.includes(entry?.verdict)
  && AUDIT.kinds.includes(entry.kind ?? "wrong_class")
  && AUDIT.datasets.includes(entry.dataset)
  && (entry.label === null || AUDIT.classes.includes(entry.label))
  && (entry.kind === MISSING ? entry.index === -1 && isBox(entry.box)
    : AUDIT.classes.includes(entry.given) && isBox(entry.bbox)
      && Number.isInteger(entry.index) && entry.index >= 0 && (!entry.box || isBox(entry.box)));

function restore(data) {
  checkFile(data);
  const places = new Map(rows.map((row) => [keyOfRow(row), row.place]));
  let unknown = 0;
  for (const entry of data.decisions) {
    const key = keyOf(
      entry?.dataset, entry?.image_id, entry?.index, entry?.kind, entry?.box);
    const place = places.get(key);
    // A verdict on another label than the one that is shown says nothing about this one.
    if (!isDecision(entry)
      || (place !== undefined && entry.given !== label(rows[place].label))) unknown += 1;
    else if (place === undefined) elsewhere.set(key, entry);
    else {
      const id = entry.label === null ? null : AUDIT.classes.indexOf(entry.label);
      decisions.set(place, { verdict: entry.verdict, label: id, box: entry.box ?? null });
    }
  }
  remember();
  return unknown;
}

// A browser may refuse storage to a file: decisions then live until the page is closed.
function remember() {
  try { localStorage.setItem(storageKey, JSON.stringify(exported())); } catch { /* not kept */ }
}

try {
  const kept = localStorage.getItem(storageKey);
  if (kept) restore(JSON.parse(kept));
} catch { /* nothing kept, or not by this page */ }

// ---- filters -----------------------------------------------------------------------------------

const NO_FILTER = {
  kind: "", given: "", suggested: "", suspicion: 0, verdict: "", image: "", bin: null, pair: null,
  order: "suspicion",
};
const filter = { ...NO_FILTER };

const NUM_BINS = 40;
const binOf = (row) => (row.confidence === null ? -1
  : Math.min(NUM_BINS - 1, Math.floor((row.confidence / Math.E) * NUM_BINS)));

function fits(row) {
  if (row.suspicion < filter.suspicion) return false;
  if (filter.kind && row.kind !== filter.kind) return false;
  if (filter.given !== "" && row.label !== Number(filter.given)) return false;
  if (filter.suggested !== "" && row.suggested !== Number(filter.suggested)) return false;
  if (filter.bin !== null && binOf(row) !== filter.bin) return false;
  // A cell of the matrix counts suspects only.
  if (filter.pair && (row.label !== filter.pair[0] || row.suggested !== filter.pair[1]
    || row.suspicion <= SUSPECT || row.kind !== "wrong_class")) return false;
  if (filter.image && !imageName(row).toLowerCase().includes(filter.image)) return false;
  if (filter.verdict === "open") return !decisions.has(row.place);
  return !filter.verdict || decisions.get(row.place)?.verdict === filter.verdict;
}

const ORDERS = {
  suspicion: (a, b) => a.place - b.place,
  confidence: (a, b) => (a.confidence ?? 9) - (b.confidence ?? 9) || a.place - b.place,
  loss: (a, b) => b.mean_loss - a.mean_loss || a.place - b.place,
  image: (a, b) => imageName(a).localeCompare(imageName(b)) || a.index - b.index,
};

const matching = () => rows.filter(fits).sort(ORDERS[filter.order]);
