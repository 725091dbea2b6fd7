// The summary at the top: tiles, histogram of the confidence, given against suggested labels.

const SVG = "http://www.w3.org/2000/svg";
const MATRIX_LIMIT = 24;
const NUM_PAIRS = 40;

function svg(tag, attributes, text = "") {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  return node;
}

function drawTiles() {
  const suspects = AUDIT.summary.num_suspects;
  const all = AUDIT.summary.num_annotations;
  const share = all ? ((100 * suspects) / all).toFixed(1) : "0";
  const tiles = [
    [all.toLocaleString("en"), "annotations ranked"],
    [AUDIT.summary.num_images.toLocaleString("en"), "images"],
    [suspects.toLocaleString("en"), `suspects (${share} %): another class is likelier`, "alarm"],
    [AUDIT.summary.mean_confidence.toFixed(2), "mean confidence σ, at most e"],
  ];
  if (AUDIT.summary.num_unseen) {
    tiles.push([AUDIT.summary.num_unseen.toLocaleString("en"), "never sampled, not ranked"]);
  }
  if (KINDS.some((kind) => kind !== "wrong_class")) addKindTiles(tiles);
  else if (rows.length < all) tiles.push([rows.length.toLocaleString("en"), "most suspect shown below"]);
  for (const [value, text, kind = ""] of tiles) {
    const tile = element("div", `tile ${kind}`);
    tile.append(element("b", "", value), element("span", "", text));
    byId("tiles").append(tile);
  }
}

// How many suspects of each kind there are.
function addKindTiles(tiles) {
  for (const kind of KINDS.filter((name) => name !== "wrong_class")) {
    const count = AUDIT.summary.suspects_by_kind[AUDIT.kinds.indexOf(kind)];
    tiles.push([count.toLocaleString("en"), `${kindName(kind)}, suspicion above ${SUSPECT}`,
      `kind kind-${kind}`]);
  }
  const listed = AUDIT.summary.num_listed;
  if (rows.length < listed) tiles.push([rows.length.toLocaleString("en"), "listed below"]);
}

function drawHistogram(onChange) {
  const chart = byId("histogram");
  const [width, height, base] = [chart.clientWidth || 600, 168, 146];
  const counts = AUDIT.summary.histogram; // [given most probable, another more probable] a bin
  const most = Math.max(1, ...counts.map(([a, b]) => a + b));
  const step = width / counts.length;
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  chart.append(svg("line", { x1: 0, x2: width, y1: base + 0.5, y2: base + 0.5 }));
  counts.forEach(([other, suspect], bin) => {
    let top = base;
    for (const [count, kind] of [[suspect, "suspect"], [other, "other"]]) {
      const size = (count / most) * (base - 16);
      top -= size;
      chart.append(svg("rect", {
        class: kind, x: bin * step + 1, width: step - 2, y: top, height: size, rx: 1.5,
      }));
    }
    const hit = svg("rect", {
      class: "hit", x: bin * step, width: step, y: 0, height: base, "data-bin": bin,
    });
    const low = ((bin * Math.E) / counts.length).toFixed(2);
    const high = (((bin + 1) * Math.E) / counts.length).toFixed(2);
    hit.append(svg("title", {}, `σ ${low} to ${high}: ${other + suspect} annotations`));
    hit.addEventListener("click", () => {
      filter.bin = filter.bin === bin ? null : bin;
      onChange();
    });
    chart.append(hit);
  });
  for (const [value, text, anchor] of [[0, "0", "start"], [1, "1", "middle"], [2, "2", "middle"],
    [Math.E, "e", "end"]]) {
    const x = (value / Math.E) * width;
    chart.append(svg("text", { x, y: height - 4, "text-anchor": anchor }, text));
  }
  chart.append(svg("text", { x: 0, y: 10 }, `${most}`));
}

function pairCounts() {
  return AUDIT.summary.pairs.map(([given, suggested, count]) => ({ given, suggested, count }));
}

function selectPair(pair, onChange) {
  const same = filter.pair && filter.pair[0] === pair.given && filter.pair[1] === pair.suggested;
  filter.pair = same ? null : [pair.given, pair.suggested];
  onChange();
}

function drawMatrix(pairs, onChange) {
  const most = Math.max(1, ...pairs.map((p) => p.count));
  const found = new Map(pairs.map((p) => [`${p.given} ${p.suggested}`, p]));
  const grid = element("div", "matrix");
  const size = AUDIT.classes.length;
  grid.style.gridTemplateColumns = `minmax(40px, max-content) repeat(${size}, minmax(18px, 1fr))`;
  grid.append(element("span"));
  for (const name of AUDIT.classes) grid.append(element("span", "column", name));
  for (let given = 0; given < size; given += 1) {
    grid.append(element("span", "row", label(given)));
    for (let suggested = 0; suggested < size; suggested += 1) {
      const pair = found.get(`${given} ${suggested}`);
      const cell = element("button", "cell", pair ? String(pair.count) : "");
      cell.title = `${label(given)} → ${label(suggested)}: ${pair ? pair.count : 0}`;
      cell.dataset.pair = `${given},${suggested}`;
      cell.disabled = !pair;
      if (pair) {
        const share = Math.round(18 + 72 * (pair.count / most));
        cell.style.background = `color-mix(in srgb, var(--suspect) ${share}%, var(--shade))`;
        cell.addEventListener("click", () => selectPair(pair, onChange));
      }
      grid.append(cell);
    }
  }
  byId("confusion").append(grid);
}

function drawPairs(pairs, onChange) {
  for (const pair of pairs.slice(0, NUM_PAIRS)) {
    const line = element("button", "pair");
    line.dataset.pair = `${pair.given},${pair.suggested}`;
    line.append(element("b", "", String(pair.count)),
      element("span", "", `${label(pair.given)} → ${label(pair.suggested)}`));
    line.addEventListener("click", () => selectPair(pair, onChange));
    byId("confusion").append(line);
  }
}

function drawConfusion(onChange) {
  const pairs = pairCounts();
  if (!pairs.length) byId("confusion").append(element("p", "legend", "No suspects."));
  else if (AUDIT.classes.length <= MATRIX_LIMIT) drawMatrix(pairs, onChange);
  else drawPairs(pairs, onChange);
}

function markCharts() {
  for (const hit of document.querySelectorAll("#histogram .hit")) {
    hit.classList.toggle("on", Number(hit.dataset.bin) === filter.bin);
  }
  for (const cell of document.querySelectorAll("#confusion [data-pair]")) {
    cell.classList.toggle("on", cell.dataset.pair === String(filter.pair));
  }
}
