// The gallery, the inspector and the keys. Only the cards in view exist.

const CARD = { width: 164, height: 196, gap: 12 };
const gallery = byId("gallery");
let shown = matching();
let selected = 0; // position in `shown`
let columns = 1;
let drawn = new Map(); // position in `shown` -> card

// ---- crops -------------------------------------------------------------------------------------

function fillCrop(holder, row, width, height) {
  holder.replaceChildren();
  const crop = cropOf(row);
  if (!crop) {
    holder.append(element("span", "none", "no image"));
    return;
  }
  const [data, cropWidth, cropHeight, given, suggested, others] = crop;
  const scale = Math.min(width / cropWidth, height / cropHeight);
  const frame = element("div", "frame");
  frame.style.width = `${cropWidth * scale}px`;
  frame.style.height = `${cropHeight * scale}px`;
  const image = element("img");
  image.src = `data:image/jpeg;base64,${data}`;
  image.alt = "";
  image.decoding = "async";
  frame.append(image, ...others.map((box) => makeBox(box, "other")));
  if (suggested) frame.append(makeBox(suggested, "dashed"));
  if (given) frame.append(makeBox(given, "given"));
  holder.append(frame);
}

function makeBox(box, className) {
  const mark = element("div", `box ${className}`);
  const [left, top, right, bottom] = box.map((x) => `${x / 10}%`);
  mark.style.inset = `${top} ${right} ${bottom} ${left}`;
  return mark;
}

// What a suspect is and what it is suggested to be.
const WHAT = { misplaced_box: "other box", no_object: "remove", duplicate: "remove" };
const namesOf = (row) => [row.kind === MISSING ? "no box" : label(row.label),
  WHAT[row.kind] ?? label(row.suggested)];

// ---- cards -------------------------------------------------------------------------------------

function makeCard(position) {
  const row = shown[position];
  const card = element("div", `card kind-${row.kind}`);
  card.id = `card-${position}`;
  card.setAttribute("role", "option");
  card.dataset.place = row.place;
  card.style.width = `${CARD.width}px`;
  card.style.height = `${CARD.height}px`;
  card.style.left = `${(position % columns) * (CARD.width + CARD.gap)}px`;
  card.style.top = `${Math.floor(position / columns) * (CARD.height + CARD.gap)}px`;
  const crop = element("div", "crop");
  fillCrop(crop, row, CARD.width - 2, 132);
  const text = element("div", "text");
  const names = element("div", "names");
  const [from, to] = namesOf(row);
  names.append(element("span", "", from), element("span", "arrow", "→"),
    element("span", "to", to));
  const meter = element("div", "meter");
  meter.append(element("i"));
  meter.firstChild.style.width = `${row.suspicion * 100}%`;
  const numbers = element("div", "small");
  numbers.append(element("span", "", `suspicion ${fixed(row.suspicion, 2)}`));
  if (row.label !== null) numbers.append(element("span", "", `σ ${fixed(row.confidence, 2)}`));
  text.append(names, meter, numbers);
  card.append(crop, text);
  if (KINDS.length > 1) card.append(element("span", "chip", kindName(row.kind)));
  card.addEventListener("click", () => select(position));
  markCard(card, position);
  return card;
}

function markCard(card, position) {
  const verdict = decisions.get(shown[position].place)?.verdict;
  card.classList.toggle("on", position === selected);
  card.setAttribute("aria-selected", String(position === selected));
  card.querySelector(".badge")?.remove();
  if (verdict) card.append(element("span", `badge ${verdict}`, verdict));
}

function draw() {
  const first = Math.floor(gallery.scrollTop / (CARD.height + CARD.gap)) - 1;
  const rowsInView = Math.ceil(gallery.clientHeight / (CARD.height + CARD.gap)) + 2;
  const start = Math.max(0, first * columns);
  const end = Math.min(shown.length, (first + rowsInView + 1) * columns);
  for (const [position, card] of drawn) {
    if (position < start || position >= end) {
      card.remove();
      drawn.delete(position);
    }
  }
  for (let position = start; position < end; position += 1) {
    if (!drawn.has(position)) {
      const card = makeCard(position);
      drawn.set(position, card);
      byId("spacer").append(card);
    }
  }
}

function layout() {
  columns = Math.max(1, Math.floor((gallery.clientWidth + CARD.gap) / (CARD.width + CARD.gap)));
  const lines = Math.ceil(shown.length / columns);
  byId("spacer").style.height = `${Math.max(0, lines * (CARD.height + CARD.gap) - CARD.gap)}px`;
  for (const card of drawn.values()) card.remove();
  drawn = new Map();
  draw();
}

// ---- inspector ---------------------------------------------------------------------------------

function fillInspector() {
  const row = shown[selected];
  byId("inspector").style.visibility = row ? "visible" : "hidden";
  if (!row) return;
  const decision = decisions.get(row.place);
  byId("view").className = `crop kind-${row.kind}`;
  byId("kind").className = `chip kind-${row.kind}`;
  byId("kind").textContent = kindName(row.kind);
  fillCrop(byId("view"), row, 310, 250);
  const [from, to] = namesOf(row);
  const parts = [["given", from], ["suggested", to]].map(([title, name]) => {
    const part = element("div");
    part.append(element("small", "", title), element("b", "", name));
    return part;
  });
  byId("labels").replaceChildren(...parts);
  for (const verdict of VERDICTS) {
    byId(`verdict-${verdict}`).classList.toggle("on", decision?.verdict === verdict);
  }
  const correction = decision?.verdict === "wrong" ? decision.label : suggestionOf(row);
  // What is not there cannot be removed.
  byId("correction").options[0].disabled = row.kind === MISSING;
  byId("correction").value = correction === null ? "" : String(correction);
  byId("classes").replaceChildren(...row.top.map(([id, probability]) => {
    const bar = element("div", `bar ${id === row.label ? "given" : ""}`);
    const meter = element("div", "meter");
    meter.append(element("i"));
    meter.firstChild.style.width = `${probability * 100}%`;
    bar.append(element("span", "", label(id)), meter,
      element("span", "value", percent(probability, 0)));
    return bar;
  }));
  const facts = [
    ["image", imageName(row)], ["suspicion", fixed(row.suspicion, 3)], ...boxFacts(row),
    ...(row.label === null ? [] : labelFacts(row)),
  ];
  byId("facts").replaceChildren(...facts.flatMap(([name, value]) => [
    element("dt", "", name), element("dd", "", value),
  ]));
}

const pixels = (box) => box.map((x) => Math.round(x)).join(", ");

function boxFacts(row) {
  const facts = [];
  if (row.bbox) {
    facts.push(["annotation", `${row.index} (id ${row.annotation_id})`],
      ["box, pixels", pixels(row.bbox)]);
  }
  if (row.suggested_bbox) {
    const name = row.kind === "duplicate" ? "the other box" : "suggested box";
    facts.push([`${name}, pixels`, pixels(row.suggested_bbox)]);
  }
  return facts;
}

function labelFacts(row) {
  return [
    ["given label correct with", percent(row.expected_correctness, 1)],
    ["confidence σ, mean / last",
      `${fixed(row.confidence, 3)} / ${fixed(row.last_confidence, 3)}`],
    ["loss, mean / last", `${fixed(row.mean_loss, 3)} / ${fixed(row.last_loss, 3)}`],
    ["samples", String(row.num_samples)],
  ];
}

function fillProgress() {
  const counts = { wrong: 0, right: 0, unsure: 0 };
  for (const decision of decisions.values()) counts[decision.verdict] += 1;
  const parts = [decisions.size
    ? `${decisions.size} decided: ${counts.wrong} wrong, ${counts.right} right, `
      + `${counts.unsure} unsure`
    : "nothing decided yet"];
  if (elsewhere.size) parts.push(`${elsewhere.size} on annotations that are not in this report`);
  byId("progress").textContent = parts.join("; ");
}

function select(position) {
  selected = Math.max(0, Math.min(shown.length - 1, position));
  const top = Math.floor(selected / columns) * (CARD.height + CARD.gap);
  if (top < gallery.scrollTop) gallery.scrollTop = top;
  else if (top + CARD.height > gallery.scrollTop + gallery.clientHeight) {
    gallery.scrollTop = top + CARD.height - gallery.clientHeight;
  }
  draw();
  for (const [at, card] of drawn) markCard(card, at);
  gallery.setAttribute("aria-activedescendant", `card-${selected}`);
  fillInspector();
}
