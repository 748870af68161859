// The explorer's page: a map of the latent, the image at its chosen place, and ways between places.

const $ = (id) => document.getElementById(id);
const BLUE = "#3f90da";
const S = {
  runs: [], palette: [], run: 0,
  latents: null, // of the chosen place, by name: [[numbers]]
  scales: null, // of the posterior of an image of one's own
  map: null, view: null, turn: { yaw: 0.6, pitch: 0.4 }, hidden: new Set(),
  place: null, start: null, end: null, strip: null,
  frames: 0, // images shown of places decoded
  tips: new Map(),
};
window.explorer = S;

const about = () => S.runs[S.run];
const base = () => `api/runs/${S.run}`;

// ---- asking the server

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  const answer = await fetch(path, options);
  const found = await answer.json();
  if (!answer.ok) {
    const said = typeof found.detail === "string" ? found.detail : `refused (${answer.status})`;
    complain(said);
    throw new Error(said);
  }
  $("error").hidden = true;
  return found;
}

function complain(text) {
  $("error").textContent = text;
  $("error").hidden = false;
}

// Of requests that follow each other faster than they are answered, the last one counts.
function latest(work) {
  let busy = false, next = null;
  return async function run(...words) {
    if (busy) { next = words; return; }
    busy = true;
    try { await work(...words); } catch (error) { console.warn(error.message); }
    busy = false;
    if (next) { const again = next; next = null; run(...again); }
  };
}

function settled(work, wait) {
  let timer = 0;
  return (...words) => { clearTimeout(timer); timer = setTimeout(() => work(...words), wait); };
}

// ---- images

function bytes(text) {
  const raw = atob(text), found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found;
}

function paint(canvas, levels, number, shape) {
  const [channels, height, width] = shape, size = height * width;
  canvas.width = width; canvas.height = height;
  const picture = canvas.getContext("2d").createImageData(width, height);
  const first = number * channels * size, colour = channels >= 3;
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) {
      picture.data[4 * i + c] = levels[first + (colour ? c * size : 0) + i];
    }
    picture.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function fill(strip, found, shape, title, chosen) {
  strip.replaceChildren();
  const levels = bytes(found.pixels);
  for (let i = 0; i < found.count; i++) {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    paint(canvas, levels, i, shape);
    const text = title(i);
    canvas.title = text;
    canvas.setAttribute("role", chosen ? "button" : "img");
    canvas.setAttribute("aria-label", text);
    if (chosen) {
      canvas.tabIndex = 0;
      canvas.onclick = () => chosen(i);
      canvas.onkeydown = (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); chosen(i); } };
    }
    figure.append(canvas);
    strip.append(figure);
  }
}

// ---- the chosen place

const label = () => (about().conditional ? Number($("label").value) : null);
const copy = (latents) => JSON.parse(JSON.stringify(latents));
const row = (latents, i) => Object.fromEntries(Object.entries(latents).map(([k, z]) => [k, [z[i]]]));
const short = (v) => Number(v.toFixed(3)).toString();

function showImage(found, text) {
  paint($("image"), bytes(found.pixels), 0, about().shape);
  S.frames += 1;
  $("caption").textContent = text;
}

function placeText() {
  const parts = about().latents.map(({ name, dim }) =>
    `${name} = (${S.latents[name][0].slice(0, 6).map(short).join(", ")}${dim > 6 ? ", …" : ""})`);
  return parts.join("  ");
}

function choose(latents, { text = null, place = null, decode = true, scales = null } = {}) {
  S.latents = latents;
  S.scales = scales;
  syncSliders();
  if (place) S.place = place; else findPlace();
  if (decode) decodeNow(text);
  nearestSoon();
  drawSoon();
}

const decodeNow = latest(async (text) => {
  if (about().completes) return;
  const run = S.run, found = await ask(`${base()}/decode`, { latents: S.latents, label: label() });
  if (run === S.run) showImage(found, text ?? placeText());
});

const findPlace = latest(async () => {
  const { method, dims } = chosenMap();
  if (method === "dims" && $("latent").value in S.latents) {
    const z = S.latents[$("latent").value][0];
    S.place = dims.length === 1 ? [z[dims[0]], 0] : dims.map((d) => z[d]);
  } else if (S.map) {
    const body = { latent: $("latent").value, method, dims, latents: S.latents };
    S.place = (await ask(`${base()}/where`, body)).place;
  }
  drawSoon();
});

const nearestSoon = settled(async () => {
  const run = S.run;
  const found = await ask(`${base()}/nearest`, { latents: S.latents }).catch(() => null);
  if (!found || run !== S.run) return;
  const name = (n) => (n.label === null ? "" : `, ${about().classes[n.label]}`);
  fill($("nearest"), found, about().shape,
    (i) => `training image ${found.neighbours[i].row}${name(found.neighbours[i])}, at ${found.neighbours[i].distance}`);
}, 80);

const goTo = latest(async (place) => {
  const { method, dims } = chosenMap();
  const body = { latent: $("latent").value, method, dims, place, now: S.latents, label: label() };
  const run = S.run, found = await ask(`${base()}/at`, body);
  if (run !== S.run) return;
  S.latents = found.latents;
  S.scales = null;
  S.place = place;
  syncSliders();
  showImage(found, placeText());
  nearestSoon();
  drawSoon();
});

// ---- sliders

function makeSliders() {
  const box = $("sliders");
  box.replaceChildren();
  for (const { name, order, low, high, strength } of about().latents) {
    for (const d of order) {
      const line = document.createElement("div");
      line.className = "slider";
      const text = document.createElement("span"), range = document.createElement("input"), number = document.createElement("input");
      text.dataset.latent = name; text.dataset.dim = d;
      text.title = strength[d] === null ? "" : `${strength[d].toFixed(2)} nats`;
      range.type = "range"; number.type = "number";
      const reach = Math.max(3, Math.abs(low[d] ?? 3), Math.abs(high[d] ?? 3));
      range.min = -reach; range.max = reach; range.step = number.step = 0.01;
      for (const input of [range, number]) {
        input.dataset.latent = name; input.dataset.dim = d;
        input.setAttribute("aria-label", `${name}[${d}]`);
        input.oninput = () => {
          const value = Number(input.value);
          if (input.value === "" || !Number.isFinite(value) || Math.abs(value) > 1e4) return;
          const latents = copy(S.latents);
          latents[name][0][d] = value;
          choose(latents);
        };
      }
      line.append(text, range, number);
      box.append(line);
    }
  }
}

function syncSliders() {
  for (const input of $("sliders").querySelectorAll("input")) {
    if (input === document.activeElement && input.type === "number") continue;
    input.value = short(S.latents[input.dataset.latent][0][input.dataset.dim]);
  }
  for (const text of $("sliders").querySelectorAll("span")) { // of an image of one's own, its posterior's scale
    const { latent, dim } = text.dataset, scale = S.scales ? S.scales[latent][dim] : null;
    text.textContent = `${latent}[${dim}]${scale === null ? "" : ` ± ${short(scale)}`}`;
  }
}

// ---- the map

function chosenMap() {
  const method = $("method").value, dim = latentOf($("latent").value).dim;
  if (method !== "dims") return { method, dims: [] };
  const chosen = [$("dim-x"), $("dim-y"), $("dim-z")].slice(0, Math.min(dim, 3))
    .map((each) => each.value).filter((v) => v !== "").map(Number);
  return { method, dims: [...new Set(chosen)] };
}

const latentOf = (name) => about().latents.find((each) => each.name === name);

async function loadMap() {
  const run = S.run, { method, dims } = chosenMap();
  const query = new URLSearchParams([["latent", $("latent").value], ["method", method], ...dims.map((d) => ["dims", d])]);
  const found = await ask(`${base()}/map?${query}`);
  if (run !== S.run || method !== $("method").value) return;
  if (found.state === "computing") {
    $("wait").textContent = `computing ${method === "tsne" ? "t-SNE" : "UMAP"} …`;
    $("wait").hidden = false;
    S.map = null; draw();
    setTimeout(() => { if (run === S.run && method === $("method").value) loadMap().catch(() => {}); }, 700);
    return;
  }
  $("wait").hidden = true;
  S.map = found;
  S.order = shuffled(found.points.length);
  wholeMap();
  makeLegend();
  findPlace();
  document.body.dataset.ready = "yes";
}

function shuffled(count) { // one random order, so that no class lies on top
  const order = Array.from({ length: count }, (_, i) => i);
  let seed = 1;
  for (let i = count - 1; i > 0; i--) {
    seed = (seed * 1103515245 + 12345) % 2147483648;
    const j = seed % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

const deep = () => S.map && S.map.points.length > 0 && S.map.points[0].length === 3;

function flat(p) { // of three dimensions, as seen from the turn
  if (p.length < 3 || !deep()) return [p[0], p[1]];
  const { yaw, pitch } = S.turn, m = S.middle;
  const x = p[0] - m[0], y = p[1] - m[1], z = p[2] - m[2];
  const a = x * Math.cos(yaw) + z * Math.sin(yaw), b = -x * Math.sin(yaw) + z * Math.cos(yaw);
  return [a, y * Math.cos(pitch) - b * Math.sin(pitch)];
}

function wholeMap() {
  const points = S.map.points;
  S.middle = [0, 1, 2].map((i) => points.reduce((sum, p) => sum + (p[i] ?? 0), 0) / points.length);
  const shown = points.map(flat);
  const reach = (i) => {
    const all = shown.map((p) => p[i]).sort((a, b) => a - b), cut = Math.floor(all.length * 0.001);
    return [all[cut], all[all.length - 1 - cut]];
  };
  const [x, y] = [reach(0), reach(1)];
  const box = $("map").getBoundingClientRect();
  const spanX = Math.max(1e-6, x[1] - x[0]), spanY = Math.max(1e-6, y[1] - y[0]);
  S.view = { x: (x[0] + x[1]) / 2, y: (y[0] + y[1]) / 2, scale: 0.88 * Math.min(box.width / spanX, box.height / spanY) };
  draw();
}

function onScreen(p) {
  const [x, y] = flat(p), box = S.box;
  return [box.width / 2 + (x - S.view.x) * S.view.scale, box.height / 2 - (y - S.view.y) * S.view.scale];
}

const onMap = (x, y) => [S.view.x + (x - S.box.width / 2) / S.view.scale, S.view.y - (y - S.box.height / 2) / S.view.scale];

const groups = () => S.map[$("colour").value] ?? S.map.labels;
const colourOf = (group) => (group === null || group === undefined ? BLUE : S.palette[group % S.palette.length]);
const groupName = (g) => ($("colour").value === "clusters" ? `cluster ${g}` : about().classes[g] ?? String(g));

let waiting = false, stale = true;
const layer = document.createElement("canvas"); // all but the chosen place, which moves alone while one drags

function draw() {
  stale = true;
  drawSoon();
}

function drawSoon() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; drawNow(); });
}

function drawNow() {
  const canvas = $("map"), box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
  S.box = box;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = layer.width = width; canvas.height = layer.height = height;
    stale = true;
  }
  if (stale) {
    const below = layer.getContext("2d");
    below.setTransform(ratio, 0, 0, ratio, 0, 0);
    below.clearRect(0, 0, box.width, box.height);
    drawLayer(below, box);
    stale = false;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, width, height);
  if (width && height) pen.drawImage(layer, 0, 0);
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawPlace(pen);
}

function drawLayer(pen, box) {
  if (!S.map || !S.view) return;
  const style = getComputedStyle(document.body), text = style.color;
  const found = groups(), size = S.map.points.length > 4000 ? 2 : 3;
  pen.globalAlpha = 0.8;
  for (const i of S.order) {
    const group = found ? found[i] : null;
    if (S.hidden.has(group)) continue;
    const [x, y] = onScreen(S.map.points[i]);
    if (x < 0 || y < 0 || x > box.width || y > box.height) continue;
    pen.fillStyle = colourOf(group);
    pen.fillRect(x - size / 2, y - size / 2, size, size);
  }
  pen.globalAlpha = 1;
  pen.strokeStyle = text; pen.lineWidth = 1;
  for (const { mass, lines } of S.map.contours) {
    pen.globalAlpha = 0.35 + 0.3 * (1 - mass);
    for (const line of lines) {
      pen.beginPath();
      line.forEach((p, i) => { const [x, y] = onScreen(p); i ? pen.lineTo(x, y) : pen.moveTo(x, y); });
      pen.stroke();
    }
  }
  pen.globalAlpha = 1;
  for (const p of S.map.components) {
    const [x, y] = onScreen(p), r = S.map.components.length > 50 ? 3 : 5;
    pen.beginPath();
    pen.moveTo(x, y - r); pen.lineTo(x + r, y); pen.lineTo(x, y + r); pen.lineTo(x - r, y); pen.closePath();
    pen.fillStyle = style.backgroundColor; pen.fill(); pen.stroke();
  }
  pen.fillStyle = text; pen.font = "12px system-ui, sans-serif";
  if (S.map.names[0]) pen.fillText(S.map.names[0], box.width - 8 - pen.measureText(S.map.names[0]).width, box.height - 8);
  if (S.map.names[1]) pen.fillText(S.map.names[1], 8, 16);
  if (S.start) cross(pen, S.start.place, "A");
  if (S.end) cross(pen, S.end.place, "B");
}

function drawPlace(pen) {
  if (!S.map || !S.view || !S.place || S.place.length < 2) return;
  const style = getComputedStyle(document.body), text = style.color, [x, y] = onScreen(S.place);
  for (const [colour, width] of [[style.backgroundColor, 5], [text, 2]]) {
    pen.strokeStyle = colour; pen.lineWidth = width;
    pen.beginPath(); pen.arc(x, y, 8, 0, 7); pen.moveTo(x - 13, y); pen.lineTo(x - 4, y); pen.moveTo(x + 4, y); pen.lineTo(x + 13, y);
    pen.moveTo(x, y - 13); pen.lineTo(x, y - 4); pen.moveTo(x, y + 4); pen.lineTo(x, y + 13); pen.stroke();
  }
}

function cross(pen, place, name) {
  if (!place) return;
  const [x, y] = onScreen(place);
  pen.font = "bold 14px system-ui, sans-serif";
  pen.fillText(name, x - 5, y + 5);
  pen.font = "12px system-ui, sans-serif";
}

function makeLegend() {
  const box = $("legend"), found = groups();
  box.replaceChildren();
  if (!found) return;
  for (const group of [...new Set(found)].sort((a, b) => a - b)) {
    const button = document.createElement("button");
    button.textContent = groupName(group);
    button.style.borderLeftColor = colourOf(group);
    button.setAttribute("aria-pressed", String(!S.hidden.has(group)));
    button.onclick = () => {
      S.hidden.has(group) ? S.hidden.delete(group) : S.hidden.add(group);
      button.setAttribute("aria-pressed", String(!S.hidden.has(group)));
      draw();
    };
    box.append(button);
  }
}

// ---- pointers and keys on the map

const pointers = new Map();
let gesture = null; // "decode", "pan", "turn" or "pinch"

function pointAt(event) {
  const box = $("map").getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function closest(x, y, within) {
  let best = -1, least = within * within;
  const found = groups();
  S.map.points.forEach((p, i) => {
    if (found && S.hidden.has(found[i])) return;
    const [a, b] = onScreen(p), distance = (a - x) ** 2 + (b - y) ** 2;
    if (distance < least) { least = distance; best = i; }
  });
  return best;
}

async function choosePoint(i) {
  const found = await testImage(S.map.places[i]);
  choose(found.latents, { place: S.map.points[i] });
}

async function testImage(place) {
  const key = `${S.run}/${place}`;
  if (!S.tips.has(key)) {
    if (S.tips.size > 500) S.tips.clear();
    S.tips.set(key, await ask(`${base()}/test/${place}`));
  }
  return S.tips.get(key);
}

const hover = latest(async (x, y) => {
  const i = S.map && S.view ? closest(x, y, 8) : -1;
  if (i < 0) { $("tip").hidden = true; return; }
  const found = await testImage(S.map.places[i]), tip = $("tip");
  paint(tip.querySelector("canvas"), bytes(found.pixels), 0, about().shape);
  const name = found.label === null ? "" : `: ${about().classes[found.label]}`;
  tip.querySelector("span").textContent = `test ${found.kind} ${found.row}${name}`;
  tip.style.left = `${Math.min(x + 14, S.box.width - 130)}px`;
  tip.style.top = `${Math.min(y + 14, S.box.height - 110)}px`;
  tip.hidden = false;
});

function zoom(factor, x, y) {
  const [a, b] = onMap(x, y);
  S.view.scale *= factor;
  const [c, d] = onMap(x, y);
  S.view.x += a - c; S.view.y += b - d;
  draw();
}

function setUpMap() {
  const map = $("map");
  map.addEventListener("pointerdown", (event) => {
    if (!S.map) return;
    map.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, pointAt(event));
    $("tip").hidden = true;
    if (pointers.size === 2) { gesture = "pinch"; return; }
    gesture = event.shiftKey || event.button !== 0 ? "pan" : deep() ? "turn" : "decode";
    S.moved = 0;
    if (gesture === "decode") goTo(onMap(...pointAt(event)));
  });
  map.addEventListener("pointermove", (event) => {
    if (!S.map) return;
    const now = pointAt(event), before = pointers.get(event.pointerId);
    if (!before) { hover(...now); return; }
    const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
    S.moved += Math.abs(dx) + Math.abs(dy);
    if (gesture === "pinch" && pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const length = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
      zoom(length(now) / Math.max(1, length(before)), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      S.view.x -= dx / 2 / S.view.scale; S.view.y += dy / 2 / S.view.scale;
    } else if (gesture === "pan") {
      S.view.x -= dx / S.view.scale; S.view.y += dy / S.view.scale;
    } else if (gesture === "turn") {
      S.turn.yaw += dx / 120; S.turn.pitch = Math.max(-1.5, Math.min(1.5, S.turn.pitch + dy / 120));
    } else if (gesture === "decode") {
      goTo(onMap(...now));
    }
    pointers.set(event.pointerId, now);
    if (gesture !== "decode") draw();
  });
  const end = (event) => {
    if (!pointers.delete(event.pointerId)) return;
    if (gesture === "turn" && S.moved < 4) {
      const i = closest(...pointAt(event), 12);
      if (i >= 0) choosePoint(i);
    }
    if (pointers.size === 0) gesture = null;
  };
  map.addEventListener("pointerup", end);
  map.addEventListener("pointercancel", end);
  map.addEventListener("pointerleave", () => { $("tip").hidden = true; });
  map.addEventListener("contextmenu", (event) => event.preventDefault());
  map.addEventListener("wheel", (event) => {
    if (!S.map) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), ...pointAt(event));
  }, { passive: false });
  map.addEventListener("keydown", (event) => {
    if (!S.map || !S.view) return;
    const step = (event.shiftKey ? 40 : 10) / S.view.scale;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.key in moves) {
      event.preventDefault();
      if (deep()) {
        S.turn.yaw += Math.sign(moves[event.key][0]) / 8; S.turn.pitch += Math.sign(moves[event.key][1]) / 8;
        return draw();
      }
      if (S.place) goTo([S.place[0] + moves[event.key][0], S.place[1] + moves[event.key][1]]);
    } else if (event.key === "+" || event.key === "-") {
      zoom(event.key === "+" ? 1.25 : 0.8, S.box.width / 2, S.box.height / 2);
    }
  });
  new ResizeObserver(draw).observe(map);
}

// ---- draws, ways, classes

function stripOf(found, title) {
  S.strip = found.latents ? { latents: found.latents, label: label() } : null;
  fill($("way"), found, about().shape, title,
    found.latents ? (i) => choose(row(found.latents, i)) : null);
}

function drawsBody(count) {
  const cluster = about().clusters ? $("cluster").value : "";
  return {
    count, temperature: Number($("temperature").value) || 0, seed: Math.max(0, Math.floor(Number($("seed").value) || 0)),
    label: label(), cluster: cluster === "" ? null : Number(cluster),
  };
}

function command(body) {
  let text = `vaekit generate ${about().name} --count ${body.count} --seed ${body.seed}`;
  if (body.temperature !== 1) text += ` --temperature ${body.temperature}`;
  if (body.label !== null) text += ` --label ${body.label}`;
  if (body.cluster !== null) text += ` --cluster ${body.cluster}`;
  return text;
}

async function resample(count) {
  const body = drawsBody(count);
  const found = await ask(`${base()}/draws`, body);
  if (count === 1) {
    choose(found.latents, { decode: false });
    showImage(found, command(body));
  } else {
    stripOf(found, (i) => `draw ${i + 1}`);
    $("saved").textContent = command(body);
  }
  $("seed").value = body.seed + 1;
}

async function showWay() {
  if (!S.start || !S.end) return;
  const steps = Math.min(60, Math.max(2, Math.floor(Number($("steps").value) || 11)));
  const body = { start: S.start.latents, end: S.end.latents, steps, label: label() };
  const found = await ask(`${base()}/between`, body);
  stripOf(found, (i) => `step ${i + 1} of ${found.count}`);
}

async function save(kind) {
  const chosen = S.strip ?? { latents: S.latents, label: label() };
  const found = await ask(`${base()}/save`, { ...chosen, kind });
  $("saved").textContent = `${found.path}   made also by: ${found.command}`;
}

// ---- images of one's own

async function encode(image, centre) {
  const invert = !centre && $("invert").checked, box = $("seen");
  box.replaceChildren();
  for (let i = 0; i < S.runs.length; i++) {
    const run = S.runs[i];
    const found = await ask(`api/runs/${i}/encode`, { image, invert, centre });
    const figure = document.createElement("figure"), pair = document.createElement("div"), words = document.createElement("figcaption");
    pair.className = "strip";
    for (const [pixels, text] of [[found.seen, "as the model sees it"], [found.pixels, "reconstruction"]]) {
      const canvas = document.createElement("canvas");
      paint(canvas, bytes(pixels), 0, run.shape);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${run.name}: ${text}`);
      pair.append(canvas);
    }
    const said = [S.runs.length > 1 ? run.name : "", found.label === null ? "" : `as ${run.classes[found.label]}`,
      found.elbo === null ? "" : `ELBO ${found.elbo.toFixed(1)}`];
    words.textContent = said.filter(Boolean).join(", ");
    figure.append(pair, words);
    box.append(figure);
    if (i === S.run && found.label !== null) $("label").value = found.label;
    if (i === S.run) choose(found.latents, { scales: found.scales });
  }
}

async function encodeFile(file) {
  if (!file) return;
  if (file.size > 3e6) return complain("the image file is larger than 3 MB");
  const content = new Uint8Array(await file.arrayBuffer());
  let raw = "";
  for (let i = 0; i < content.length; i += 8192) raw += String.fromCharCode(...content.subarray(i, i + 8192));
  await encode(btoa(raw), false);
}

function setUpPad() {
  const pad = $("pad"), pen = pad.getContext("2d");
  const clear = () => { pen.fillStyle = "#000"; pen.fillRect(0, 0, pad.width, pad.height); };
  clear();
  pen.lineWidth = 20; pen.lineCap = pen.lineJoin = "round"; pen.strokeStyle = "#fff";
  let last = null;
  const at = (event) => {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) * pad.width / box.width, (event.clientY - box.top) * pad.height / box.height];
  };
  const stroke = (to) => { pen.beginPath(); pen.moveTo(...last); pen.lineTo(...to); pen.stroke(); last = to; };
  pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); last = at(event); stroke(last); });
  pad.addEventListener("pointermove", (event) => { if (last) stroke(at(event)); });
  pad.addEventListener("pointerup", () => {
    if (!last) return;
    last = null;
    encode(pad.toDataURL("image/png").split(",")[1], true).catch(() => {});
  });
  $("clear").onclick = () => { clear(); $("seen").replaceChildren(); };
  $("file").onchange = (event) => { encodeFile(event.target.files[0]).catch(() => {}); event.target.value = ""; };
  for (const target of [pad, document.body]) {
    target.addEventListener("dragover", (event) => { event.preventDefault(); pad.classList.add("over"); });
    target.addEventListener("dragleave", () => pad.classList.remove("over"));
  }
  document.body.addEventListener("drop", (event) => {
    event.preventDefault();
    pad.classList.remove("over");
    encodeFile(event.dataTransfer.files[0]).catch(() => {});
  });
}

// ---- curves and numbers

async function showCurves() {
  const all = await Promise.all(S.runs.map((_, i) => ask(`api/runs/${i}/curves`)));
  const canvas = $("curves"), pen = canvas.getContext("2d"), [w, h] = [canvas.width, canvas.height];
  const style = getComputedStyle(document.body);
  const key = "validation_objective";
  const lines = all.map((epochs) => epochs.filter((e) => e[key] !== null).map((e) => [e.epoch, e[key]]));
  const points = lines.flat();
  pen.clearRect(0, 0, w, h);
  if (points.length === 0) return;
  const values = points.map((p) => p[1]).sort((a, b) => a - b);
  const low = values[Math.floor(values.length * 0.05)], high = values[values.length - 1];
  const last = Math.max(...points.map((p) => p[0]));
  const x = (e) => 70 + (w - 90) * (last > 1 ? (e - 1) / (last - 1) : 0.5);
  const y = (v) => h - 36 - (h - 56) * Math.max(-0.05, Math.min(1, (v - low) / (high - low || 1)));
  pen.fillStyle = style.color; pen.font = "12px system-ui, sans-serif";
  for (const v of [low, (low + high) / 2, high]) pen.fillText(v.toFixed(1), 8, y(v) + 4);
  pen.fillText("epoch 1", 70, h - 14); pen.fillText(String(last), w - 30, h - 14);
  pen.fillText("validation objective, nats", 70, 14);
  lines.forEach((line, i) => {
    pen.strokeStyle = S.palette[i % S.palette.length]; pen.lineWidth = 2;
    pen.beginPath();
    line.forEach(([e, v], j) => (j ? pen.lineTo(x(e), y(v)) : pen.moveTo(x(e), y(v))));
    pen.stroke();
  });
  const table = document.createElement("table");
  const columns = ["run", "best epoch", "validation ELBO", "log-likelihood", "KL"];
  const keys = ["epoch", "validation_elbo", "validation_log_likelihood", "validation_kl"];
  const line = (words, kind) => {
    const tr = document.createElement("tr");
    for (const word of words) { const cell = document.createElement(kind); cell.textContent = word; tr.append(cell); }
    table.append(tr);
    return tr;
  };
  line(columns, "th");
  S.runs.forEach((run, i) => {
    const cells = keys.map((k) => (run.best[k] === undefined ? "-" : k === "epoch" ? run.best[k] : run.best[k].toFixed(2)));
    line([run.name, ...cells], "td").firstChild.style.borderLeft = `1em solid ${S.palette[i % S.palette.length]}`;
  });
  $("numbers").replaceChildren(table);
}

// ---- putting it together

function options(select, values, names = values) {
  select.replaceChildren(...values.map((value, i) => new Option(names[i], value)));
}

function showDims() {
  const { dim, order } = latentOf($("latent").value), linear = $("method").value === "dims";
  for (const each of document.querySelectorAll(".dims")) each.hidden = !linear || dim < 2;
  $("dim-z-label").hidden = !linear || dim < 3;
  const all = Array.from({ length: dim }, (_, d) => d);
  for (const [i, select] of [$("dim-x"), $("dim-y"), $("dim-z")].entries()) {
    options(select, i === 2 ? ["", ...all] : all, i === 2 ? ["-", ...all] : all);
    const usual = dim === 3 ? i : i === 2 ? "" : dim === 2 ? i : order[i];
    select.value = String(usual ?? 0);
  }
}

async function openRun(number) {
  S.run = number;
  S.map = S.place = S.start = S.end = S.strip = S.scales = null;
  S.hidden.clear();
  const run = about(), names = run.latents.map((each) => each.name);
  $("about").textContent = `${run.model} on ${run.data}, ${run.shape.join(" × ")}, ${run.points.toLocaleString("en")} test images`;
  options($("latent"), names);
  $("latent-label").hidden = names.length < 2;
  const called = { dims: "dimensions", pca: "PCA", tsne: "t-SNE", umap: "UMAP" };
  options($("method"), run.methods, run.methods.map((m) => called[m]));
  $("method").value = run.latents[0].dim <= 3 ? "dims" : "pca";
  $("label-label").hidden = !run.conditional;
  options($("label"), run.classes.map((_, i) => i), run.classes);
  $("cluster-label").hidden = $("colour-label").hidden = !run.clusters;
  options($("cluster"), ["", ...Array(run.clusters).keys()], ["any", ...Array(run.clusters).keys()]);
  $("colour").value = "labels";
  $("analogies").hidden = !run.conditional;
  for (const id of ["nearest", "seen", "way"]) $(id).replaceChildren();
  $("saved").textContent = "";
  S.latents = Object.fromEntries(run.latents.map(({ name, mean }) => [name, [mean.map((v) => v ?? 0)]]));
  showDims();
  makeSliders();
  await loadMap();
  choose(S.latents);
  if (run.completes) $("caption").textContent = "This model completes images: its latents alone make none.";
}

const quietly = (work) => (...words) => Promise.resolve(work(...words)).catch((error) => console.warn(error.message));

async function begin() {
  const found = await ask("api/runs");
  S.runs = found.runs; S.palette = found.palette;
  options($("run"), S.runs.map((_, i) => i), S.runs.map((run) => run.name));
  setUpMap();
  setUpPad();
  $("run").onchange = quietly(() => openRun(Number($("run").value)));
  $("latent").onchange = quietly(() => { showDims(); return loadMap(); });
  $("method").onchange = quietly(() => { showDims(); return loadMap(); });
  for (const id of ["dim-x", "dim-y", "dim-z"]) $(id).onchange = quietly(loadMap);
  $("colour").onchange = () => { S.hidden.clear(); makeLegend(); draw(); };
  $("label").onchange = () => choose(S.latents);
  $("reset").onclick = () => { if (S.map) wholeMap(); };
  $("resample").onclick = quietly(() => resample(1));
  $("many").onclick = quietly(() => resample(25));
  $("set-a").onclick = quietly(() => { S.start = { latents: copy(S.latents), place: S.place }; draw(); return showWay(); });
  $("set-b").onclick = quietly(() => { S.end = { latents: copy(S.latents), place: S.place }; draw(); return showWay(); });
  $("analogies").onclick = quietly(async () => {
    const shown = await ask(`${base()}/analogies`, { latents: S.latents });
    stripOf(shown, (i) => about().classes[i]);
  });
  $("save-png").onclick = quietly(() => save("png"));
  $("save-gif").onclick = quietly(() => save("gif"));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { draw(); quietly(showCurves)(); });
  await openRun(0);
  await showCurves();
}

quietly(begin)();
