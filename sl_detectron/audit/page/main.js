// Events: filters, verdicts, keys, saving and loading.

function refresh(keepPlace = null) {
  shown = matching();
  byId("shown").textContent = `${shown.length.toLocaleString("en")} shown`;
  byId("empty").hidden = shown.length > 0;
  selected = Math.max(0, keepPlace === null ? 0 : shown.findIndex((r) => r.place === keepPlace));
  if (keepPlace === null) gallery.scrollTop = 0;
  layout();
  markCharts();
  select(selected);
}

function chosenClass() {
  const chosen = byId("correction").value;
  return chosen === "" ? null : Number(chosen);
}

function judge(verdict, correction = chosenClass()) {
  const row = shown[selected];
  if (!row) return;
  decide(row, verdict, verdict === "wrong" ? correction : null);
  fillProgress();
  if (filter.verdict) {
    // The row may have left the list: what followed it takes its position.
    const position = selected + (fits(row) ? 1 : 0);
    shown = matching();
    byId("shown").textContent = `${shown.length.toLocaleString("en")} shown`;
    byId("empty").hidden = shown.length > 0;
    layout();
    select(position);
  } else select(selected + (verdict ? 1 : 0));
}

function accept() {
  const row = shown[selected];
  if (row) judge("wrong", suggestionOf(row));
}

// Typing in a list that has the focus chooses by name; Enter takes it, and Escape leaves all as is.
function chooseByKey(event) {
  if (event.key === "Enter") {
    event.preventDefault();
    event.target.blur();
    judge("wrong");
  } else if (event.key === "Escape") {
    event.target.blur();
    fillInspector();
  }
}

function save() {
  const text = JSON.stringify(exported(), null, 1);
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "decisions.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function load(event) {
  const [file] = event.target.files;
  event.target.value = "";
  if (!file) return;
  try {
    const unknown = restore(JSON.parse(await file.text()));
    fillProgress();
    if (unknown) byId("progress").textContent += `; ${unknown} of other annotations left out`;
    refresh();
  } catch (error) {
    byId("progress").textContent = `${file.name} is not loaded: ${error.message}`;
  }
}

function fillSelects() {
  const options = (first, ids) => [[first, ""], ...ids.map((id) => [label(id), String(id)])].map(
    ([text, value]) => {
      const option = element("option", "", text);
      option.value = value;
      return option;
    });
  const given = [...new Set(rows.map((row) => row.label))].filter((id) => id !== null)
    .sort((a, b) => a - b);
  const suggested = [...new Set(rows.map((row) => row.suggested))].sort((a, b) => a - b);
  byId("filter-kind").append(...KINDS.map((kind) => {
    const option = element("option", "", kindName(kind));
    option.value = kind;
    return option;
  }));
  byId("kind").hidden = KINDS.length < 2;
  byId("filter-given").append(...options("any class", given));
  byId("filter-suggested").append(...options("any class", suggested));
  byId("correction").append(...options("no object: remove the box", AUDIT.classes.map((_, i) => i)));
}

function showFilter() {
  for (const key of ["kind", "given", "suggested", "suspicion", "verdict", "image"]) {
    byId(`filter-${key}`).value = filter[key];
  }
  byId("order").value = filter.order;
  byId("suspicion-value").textContent = Number(filter.suspicion).toFixed(2);
}

let choosing = false; // by the keyboard, in the list of classes

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) return;
  const moves = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns,
    Home: -shown.length, End: shown.length,
  };
  const verdicts = { w: "wrong", r: "right", u: "unsure", x: null };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in moves) select(selected + moves[key]);
  else if (key === "a") accept();
  else if (key === "c") {
    choosing = true;
    byId("correction").focus();
  } else if (key in verdicts) judge(verdicts[key]);
  else if (key === "z") {
    const row = takeBack();
    fillProgress();
    if (row) refresh(row.place);
  } else return;
  event.preventDefault();
}

byId("subtitle").textContent = AUDIT.subtitle;
drawTiles();
drawHistogram(refresh);
drawConfusion(refresh);
fillSelects();
fillProgress();
refresh();

for (const key of ["kind", "given", "suggested", "verdict"]) {
  byId(`filter-${key}`).addEventListener("change", (event) => {
    filter[key] = event.target.value;
    refresh();
  });
}
byId("filter-suspicion").addEventListener("input", (event) => {
  filter.suspicion = Number(event.target.value);
  showFilter();
  refresh();
});
byId("filter-image").addEventListener("input", (event) => {
  filter.image = event.target.value.trim().toLowerCase();
  refresh();
});
byId("order").addEventListener("change", (event) => {
  filter.order = event.target.value;
  refresh();
});
byId("reset").addEventListener("click", () => {
  Object.assign(filter, NO_FILTER);
  showFilter();
  refresh();
});
for (const verdict of VERDICTS) {
  byId(`verdict-${verdict}`).addEventListener("click", () => judge(verdict));
}
byId("accept").addEventListener("click", accept);
byId("correction").addEventListener("change", (event) => {
  if (choosing) return; // until Enter
  const row = shown[selected];
  if (decisions.get(row.place)?.verdict === "wrong") decide(row, "wrong", chosenClass());
  event.target.blur(); // so that the keys work again
});
byId("correction").addEventListener("keydown", chooseByKey);
byId("correction").addEventListener("blur", () => { choosing = false; });
byId("save").addEventListener("click", save);
byId("load").addEventListener("change", load);
document.addEventListener("keydown", onKey);
gallery.addEventListener("scroll", () => requestAnimationFrame(draw), { passive: true });
let width = gallery.clientWidth;
new ResizeObserver(() => {
  if (gallery.clientWidth === width) draw();
  else {
    width = gallery.clientWidth;
    layout();
    select(selected);
  }
}).observe(gallery);
document.documentElement.dataset.ready = "true";
