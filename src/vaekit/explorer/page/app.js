// The page of the explorer: a map of the latent space, the decoded latent point, interpolations, own images, curves.

const $ = (id) => document.getElementById(id);
const BLUE = "#3f90da";
const S = {
  runs: [], palette: [], run: 0,
  latents: null, // the latent point, by name: [[values]]
  scales: null, // posterior scales of the user's own image
  map: null, view: null, rotation: { yaw: 0.6, pitch: 0.4 }, hidden: new Set(),
  point: null, start: null, end: null, strip: null,
  pending: 0, // requests under way
  samples: 0, // single samples shown so far
  frames: 0, // decoded images painted so far
  testImages: new Map(), // responses by "run/position"
};
window.explorer = S;

const currentRun = () => S.runs[S.run];
const base = () => `api/runs/${S.run}`;

// ---- requests to the server

// The token of the address: kept for this tab and this port alone, so that a reload works, and removed from the history.
async function takeToken() {
  const given = new URLSearchParams(location.search).get("token");
  if (!given) return;
  sessionStorage.token = given;
  history.replaceState(null, "", location.pathname);
  sessionStorage.token = (await request("api/token", {})).token; // a launch code is good for this alone
}

async function request(path, body) {
  const headers = { authorization: `token ${sessionStorage.token ?? ""}` };
  const options = body === undefined ? { headers } : {
    method: "POST", headers: { ...headers, "content-type": "application/json" }, body: JSON.stringify(body),
  };
  S.pending += 1;
  let response, result;
  try {
    response = await fetch(path, options);
    result = await response.json();
  } finally {
    S.pending -= 1;
  }
  if (!response.ok) {
    const message = typeof result.detail === "string" ? result.detail : `request failed (${response.status})`;
    showError(message);
    throw new Error(message);
  }
  $("error").hidden = true;
  return result;
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = false;
}

// Runs one call at a time; while one is running, only the newest further call is kept.
function latestOnly(work) {
  let busy = false, next = null;
  return async function run(...args) {
    if (busy) { next = args; return; }
    busy = true;
    try { await work(...args); } catch (error) { console.warn(error.message); }
    busy = false;
    if (next) { const again = next; next = null; run(...again); }
  };
}

function debounce(work, wait) {
  let timer = 0;
  return (...args) => { clearTimeout(timer); timer = setTimeout(() => work(...args), wait); };
}

// ---- images

function decodeBase64(text) {
  const raw = atob(text), array = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) array[i] = raw.charCodeAt(i);
  return array;
}

function paintImage(canvas, levels, number, shape) {
  const [channels, height, width] = shape, size = height * width;
  canvas.width = width; canvas.height = height;
  const picture = canvas.getContext("2d").createImageData(width, height);
  const first = number * channels * size, colour = channels === 3;
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) {
      picture.data[4 * i + c] = levels[first + (colour ? c * size : 0) + i];
    }
    picture.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

function fillRow(container, result, shape, title, onSelect) {
  container.replaceChildren();
  const levels = decodeBase64(result.pixels);
  for (let i = 0; i < result.count; i++) {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    paintImage(canvas, levels, i, shape);
    const text = title(i);
    canvas.title = text;
    canvas.setAttribute("role", onSelect ? "button" : "img");
    canvas.setAttribute("aria-label", text);
    if (onSelect) {
      canvas.tabIndex = 0;
      canvas.onclick = () => onSelect(i);
      canvas.onkeydown = (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); onSelect(i); } };
    }
    figure.append(canvas);
    container.append(figure);
  }
}

// ---- the latent point

const label = () => (currentRun().conditional ? Number($("label").value) : null);
const copy = (latents) => JSON.parse(JSON.stringify(latents));
const row = (latents, i) => Object.fromEntries(Object.entries(latents).map(([k, z]) => [k, [z[i]]]));
const format = (v) => Number(v.toFixed(3)).toString();

function showImage(result, text) {
  paintImage($("image"), decodeBase64(result.pixels), 0, currentRun().shown_shape);
  S.frames += 1;
  $("caption").textContent = text;
}

function latentText() {
  const { latents } = currentRun();
  const parts = latents.slice(0, 3).map(({ name, dim }) =>
    `${name} = (${S.latents[name][0].slice(0, 6).map(format).join(", ")}${dim > 6 ? ", …" : ""})`);
  return parts.join("  ") + (latents.length > 3 ? "  …" : "");
}

function setLatents(latents, { point = null, decode = true, scales = null } = {}) {
  S.latents = latents;
  S.scales = scales;
  syncSliders();
  if (point) S.point = point; else locatePoint();
  if (decode) decodePoint();
  updateNearest();
  requestRedraw();
}

const decodePoint = latestOnly(async () => {
  if (currentRun().completes_images) return;
  const run = S.run, samples = S.samples, result = await request(`${base()}/decode`, { latents: S.latents, label: label() });
  if (run === S.run && samples === S.samples) showImage(result, latentText()); // a sample was shown meanwhile
});

const locatePoint = latestOnly(async () => {
  const { method, dims } = mapSettings();
  if (method === "dims" && $("latent").value in S.latents) {
    const z = S.latents[$("latent").value][0];
    S.point = dims.length === 1 ? [z[dims[0]], 0] : dims.map((d) => z[d]);
  } else if (S.map) {
    const body = { latent: $("latent").value, method, dims, latents: S.latents };
    S.point = (await request(`${base()}/locate`, body)).point;
  }
  requestRedraw();
});

const updateNearest = debounce(async () => {
  const run = S.run;
  const result = await request(`${base()}/nearest`, { latents: S.latents }).catch(() => null);
  if (!result || run !== S.run) return;
  const name = (n) => (n.label === null ? "" : `, class ${currentRun().classes[n.label]}`);
  fillRow($("nearest"), result, currentRun().shown_shape,
    (i) => `training image ${result.neighbours[i].row}${name(result.neighbours[i])}, distance ${result.neighbours[i].distance}`);
}, 80);

const moveTo = latestOnly(async (point) => {
  const { method, dims } = mapSettings();
  const body = { latent: $("latent").value, method, dims, point, current: S.latents, label: label() };
  const run = S.run, result = await request(`${base()}/move`, body);
  if (run !== S.run) return;
  S.latents = result.latents;
  S.scales = null;
  S.point = point;
  syncSliders();
  showImage(result, latentText());
  updateNearest();
  requestRedraw();
});

// ---- sliders

const componentsOf = (name) => latentOf(name).components;

function makeSliders() {
  const box = $("sliders");
  box.replaceChildren();
  for (const { name, order, low, high, information, components } of currentRun().latents) {
    // A slider moves along a dimension, or along a principal component of the codes of a large latent.
    for (const d of components ? components.keys() : order) {
      const line = document.createElement("div");
      line.className = "slider";
      const text = document.createElement("span"), range = document.createElement("input"), number = document.createElement("input");
      text.dataset.latent = name; text.dataset.dim = d;
      text.title = components || information[d] === null ? "" : `information: ${information[d].toFixed(2)} nats`;
      range.type = "range"; number.type = "number";
      const limit = components ? 4 : Math.max(3, Math.abs(low[d] ?? 3), Math.abs(high[d] ?? 3));
      range.min = -limit; range.max = limit; range.step = number.step = 0.01;
      for (const input of [range, number]) {
        input.dataset.latent = name; input.dataset.dim = d;
        input.setAttribute("aria-label", sliderName(name, d));
        input.oninput = () => {
          const value = Number(input.value);
          if (input.value === "" || !Number.isFinite(value) || Math.abs(value) > 1e4) return;
          const latents = copy(S.latents);
          setSlider(latents, name, d, value);
          setLatents(latents);
        };
      }
      line.append(text, range, number);
      box.append(line);
    }
  }
}

const sliderName = (name, d) => (componentsOf(name) ? `${name} PC ${Number(d) + 1}` : `${name}[${d}]`);

// The value of a slider: a coordinate, or a component in standard deviations of the codes.
function sliderValue(latents, name, d) {
  const z = latents[name][0];
  if (!componentsOf(name)) return z[d];
  const { axis, origin, spread } = componentsOf(name)[d];
  return (axis.reduce((sum, a, i) => sum + a * z[i], 0) - origin) / (spread || 1);
}

function setSlider(latents, name, d, value) {
  const z = latents[name][0];
  if (!componentsOf(name)) { z[d] = value; return; }
  const { axis, spread } = componentsOf(name)[d], distance = (value - sliderValue(latents, name, d)) * (spread || 1);
  axis.forEach((a, i) => { z[i] += a * distance; });
}

function syncSliders() {
  for (const input of $("sliders").querySelectorAll("input")) {
    if (input === document.activeElement && input.type === "number") continue;
    input.value = format(sliderValue(S.latents, input.dataset.latent, input.dataset.dim));
  }
  for (const text of $("sliders").querySelectorAll("span")) { // for the user's own image, the posterior's scale
    const { latent, dim } = text.dataset, scale = S.scales && !componentsOf(latent) ? S.scales[latent][dim] : null;
    text.textContent = `${sliderName(latent, dim)}${scale === null ? "" : ` ± ${format(scale)}`}`;
  }
}

// ---- the map

function mapSettings() {
  const method = $("method").value, dim = latentOf($("latent").value).dim;
  if (method !== "dims") return { method, dims: [] };
  const chosen = [$("dim-x"), $("dim-y"), $("dim-z")].slice(0, Math.min(dim, 3))
    .map((each) => each.value).filter((v) => v !== "").map(Number);
  return { method, dims: [...new Set(chosen)] };
}

const latentOf = (name) => currentRun().latents.find((each) => each.name === name);

function mapAddress() {
  const { method, dims } = mapSettings();
  const query = new URLSearchParams([["latent", $("latent").value], ["method", method], ...dims.map((d) => ["dims", d])]);
  return `${base()}/map?${query}`;
}

async function loadMap() {
  const address = mapAddress(), result = await request(address);
  if (address !== mapAddress()) return; // answers may arrive out of order; another map was chosen meanwhile
  if (result.state === "absent") {
    const { method } = mapSettings();
    await request(`${base()}/embedding`, { latent: $("latent").value, method });
  }
  if (result.state !== "ready") {
    $("map-status").textContent = `computing ${$("method").value === "tsne" ? "t-SNE" : "UMAP"} …`;
    $("map-status").hidden = false;
    S.map = null; invalidate();
    setTimeout(() => { if (address === mapAddress()) loadMap().catch(() => {}); }, 700);
    return;
  }
  $("map-status").hidden = true;
  S.map = result;
  S.order = shuffled(result.points.length);
  resetView();
  makeLegend();
  locatePoint();
  document.body.dataset.ready = "yes";
}

function shuffled(count) { // a fixed random order, so that no class covers the others
  const order = Array.from({ length: count }, (_, i) => i);
  let seed = 1;
  for (let i = count - 1; i > 0; i--) {
    seed = (seed * 1103515245 + 12345) % 2147483648;
    const j = seed % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

const is3d = () => S.map && S.map.points.length > 0 && S.map.points[0].length === 3;

function project(p) { // to two dimensions; a point in 3-D by the current rotation
  if (p.length < 3 || !is3d()) return [p[0], p[1]];
  const { yaw, pitch } = S.rotation, m = S.centre;
  const x = p[0] - m[0], y = p[1] - m[1], z = p[2] - m[2];
  const a = x * Math.cos(yaw) + z * Math.sin(yaw), b = -x * Math.sin(yaw) + z * Math.cos(yaw);
  return [a, y * Math.cos(pitch) - b * Math.sin(pitch)];
}

function resetView() {
  const points = S.map.points;
  S.centre = [0, 1, 2].map((i) => points.reduce((sum, p) => sum + (p[i] ?? 0), 0) / points.length);
  const shown = points.map(project);
  const extent = (i) => {
    const all = shown.map((p) => p[i]).sort((a, b) => a - b), cut = Math.floor(all.length * 0.001);
    return [all[cut], all[all.length - 1 - cut]];
  };
  const [x, y] = [extent(0), extent(1)];
  const box = $("map").getBoundingClientRect();
  const spanX = Math.max(1e-6, x[1] - x[0]), spanY = Math.max(1e-6, y[1] - y[0]);
  S.view = { x: (x[0] + x[1]) / 2, y: (y[0] + y[1]) / 2, scale: 0.88 * Math.min(box.width / spanX, box.height / spanY) };
  invalidate();
}

function toScreen(p) {
  const [x, y] = project(p), box = S.box;
  return [box.width / 2 + (x - S.view.x) * S.view.scale, box.height / 2 - (y - S.view.y) * S.view.scale];
}

const toMap = (x, y) => [S.view.x + (x - S.box.width / 2) / S.view.scale, S.view.y - (y - S.box.height / 2) / S.view.scale];

const groups = () => S.map[$("colour").value] ?? S.map.labels;
const colourOf = (group) => (group === null || group === undefined ? BLUE : S.palette[group % S.palette.length]);
const groupName = (g) => ($("colour").value === "clusters" ? `cluster ${g}` : currentRun().classes[g] ?? String(g));

let redrawRequested = false, stale = true;
const layer = document.createElement("canvas"); // everything except the marker of the latent point, which alone moves during a drag

function invalidate() {
  stale = true;
  requestRedraw();
}

function requestRedraw() {
  if (redrawRequested) return;
  redrawRequested = true;
  requestAnimationFrame(() => { redrawRequested = false; redraw(); });
}

function redraw() {
  const canvas = $("map"), box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
  S.box = box;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = layer.width = width; canvas.height = layer.height = height;
    stale = true;
  }
  if (stale) {
    const layerCtx = layer.getContext("2d");
    layerCtx.setTransform(ratio, 0, 0, ratio, 0, 0);
    layerCtx.clearRect(0, 0, box.width, box.height);
    drawLayer(layerCtx, box);
    stale = false;
  }
  const ctx = canvas.getContext("2d");
  ctx.setTransform(1, 0, 0, 1, 0, 0);
  ctx.clearRect(0, 0, width, height);
  if (width && height) ctx.drawImage(layer, 0, 0);
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawMarker(ctx);
}

function drawLayer(ctx, box) {
  if (!S.map || !S.view) return;
  const style = getComputedStyle(document.body), text = style.color;
  const groupOf = groups(), size = S.map.points.length > 4000 ? 2 : 3;
  ctx.globalAlpha = 0.8;
  for (const i of S.order) {
    const group = groupOf ? groupOf[i] : null;
    if (S.hidden.has(group)) continue;
    const [x, y] = toScreen(S.map.points[i]);
    if (x < 0 || y < 0 || x > box.width || y > box.height) continue;
    ctx.fillStyle = colourOf(group);
    ctx.fillRect(x - size / 2, y - size / 2, size, size);
  }
  ctx.globalAlpha = 1;
  ctx.strokeStyle = text; ctx.lineWidth = 1;
  for (const { mass, lines } of S.map.contours) {
    ctx.globalAlpha = 0.35 + 0.3 * (1 - mass);
    for (const line of lines) {
      ctx.beginPath();
      line.forEach((p, i) => { const [x, y] = toScreen(p); i ? ctx.lineTo(x, y) : ctx.moveTo(x, y); });
      ctx.stroke();
    }
  }
  ctx.globalAlpha = 1;
  for (const p of S.map.components) {
    const [x, y] = toScreen(p), r = S.map.components.length > 50 ? 3 : 5;
    ctx.beginPath();
    ctx.moveTo(x, y - r); ctx.lineTo(x + r, y); ctx.lineTo(x, y + r); ctx.lineTo(x - r, y); ctx.closePath();
    ctx.fillStyle = style.backgroundColor; ctx.fill(); ctx.stroke();
  }
  ctx.fillStyle = text; ctx.font = "12px system-ui, sans-serif";
  if (S.map.axis_names[0]) ctx.fillText(S.map.axis_names[0], box.width - 8 - ctx.measureText(S.map.axis_names[0]).width, box.height - 8);
  if (S.map.axis_names[1]) ctx.fillText(S.map.axis_names[1], 8, 16);
  if (S.start) drawLetter(ctx, S.start.point, "A");
  if (S.end) drawLetter(ctx, S.end.point, "B");
}

function drawMarker(ctx) {
  if (!S.map || !S.view || !S.point || S.point.length < 2) return;
  const style = getComputedStyle(document.body), text = style.color, [x, y] = toScreen(S.point);
  for (const [colour, width] of [[style.backgroundColor, 5], [text, 2]]) {
    ctx.strokeStyle = colour; ctx.lineWidth = width;
    ctx.beginPath(); ctx.arc(x, y, 8, 0, 7); ctx.moveTo(x - 13, y); ctx.lineTo(x - 4, y); ctx.moveTo(x + 4, y); ctx.lineTo(x + 13, y);
    ctx.moveTo(x, y - 13); ctx.lineTo(x, y - 4); ctx.moveTo(x, y + 4); ctx.lineTo(x, y + 13); ctx.stroke();
  }
}

function drawLetter(ctx, point, name) {
  if (!point) return;
  const [x, y] = toScreen(point);
  ctx.font = "bold 14px system-ui, sans-serif";
  ctx.fillText(name, x - 5, y + 5);
  ctx.font = "12px system-ui, sans-serif";
}

function makeLegend() {
  const box = $("legend"), groupOf = groups();
  box.replaceChildren();
  if (!groupOf) return;
  for (const group of [...new Set(groupOf)].sort((a, b) => a - b)) {
    const button = document.createElement("button");
    button.textContent = groupName(group);
    button.style.borderLeftColor = colourOf(group);
    button.setAttribute("aria-pressed", String(!S.hidden.has(group)));
    button.onclick = () => {
      S.hidden.has(group) ? S.hidden.delete(group) : S.hidden.add(group);
      button.setAttribute("aria-pressed", String(!S.hidden.has(group)));
      invalidate();
    };
    box.append(button);
  }
}

// ---- pointers and keys on the map

const pointers = new Map();
let gesture = null; // "decode", "pan", "rotate" or "pinch"

function pointAt(event) {
  const box = $("map").getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function closest(x, y, within) {
  let best = -1, least = within * within;
  const groupOf = groups();
  S.map.points.forEach((p, i) => {
    if (groupOf && S.hidden.has(groupOf[i])) return;
    const [a, b] = toScreen(p), distance = (a - x) ** 2 + (b - y) ** 2;
    if (distance < least) { least = distance; best = i; }
  });
  return best;
}

async function selectTestImage(i) {
  const result = await testImage(S.map.positions[i]);
  setLatents(result.latents, { point: S.map.points[i] });
}

async function testImage(position) {
  const key = `${S.run}/${position}`;
  if (!S.testImages.has(key)) {
    if (S.testImages.size > 500) S.testImages.clear();
    S.testImages.set(key, await request(`${base()}/test/${position}`));
  }
  return S.testImages.get(key);
}

const hover = latestOnly(async (x, y) => {
  const i = S.map && S.view ? closest(x, y, 8) : -1;
  if (i < 0) { $("tooltip").hidden = true; return; }
  const result = await testImage(S.map.positions[i]), tip = $("tooltip");
  paintImage(tip.querySelector("canvas"), decodeBase64(result.pixels), 0, currentRun().shown_shape);
  const name = result.label === null ? "" : `: ${currentRun().classes[result.label]}`;
  tip.querySelector("span").textContent = `test ${result.kind} ${result.row}${name}`;
  tip.style.left = `${Math.min(x + 14, S.box.width - 130)}px`;
  tip.style.top = `${Math.min(y + 14, S.box.height - 110)}px`;
  tip.hidden = false;
});

function zoom(factor, x, y) {
  const [a, b] = toMap(x, y);
  S.view.scale *= factor;
  const [c, d] = toMap(x, y);
  S.view.x += a - c; S.view.y += b - d;
  invalidate();
}

function setUpMap() {
  const map = $("map");
  map.addEventListener("pointerdown", (event) => {
    if (!S.map) return;
    map.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, pointAt(event));
    $("tooltip").hidden = true;
    if (pointers.size === 2) { gesture = "pinch"; return; }
    gesture = event.shiftKey || event.button !== 0 ? "pan" : is3d() ? "rotate" : "decode";
    S.moved = 0;
    if (gesture === "decode") moveTo(toMap(...pointAt(event)));
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
    } else if (gesture === "rotate") {
      S.rotation.yaw += dx / 120; S.rotation.pitch = Math.max(-1.5, Math.min(1.5, S.rotation.pitch + dy / 120));
    } else if (gesture === "decode") {
      moveTo(toMap(...now));
    }
    pointers.set(event.pointerId, now);
    if (gesture !== "decode") invalidate();
  });
  const end = (event) => {
    if (!pointers.delete(event.pointerId)) return;
    if (gesture === "rotate" && S.moved < 4) {
      const i = closest(...pointAt(event), 12);
      if (i >= 0) selectTestImage(i);
    }
    if (pointers.size === 0) gesture = null;
  };
  map.addEventListener("pointerup", end);
  map.addEventListener("pointercancel", end);
  map.addEventListener("pointerleave", () => { $("tooltip").hidden = true; });
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
      if (is3d()) {
        S.rotation.yaw += Math.sign(moves[event.key][0]) / 8; S.rotation.pitch += Math.sign(moves[event.key][1]) / 8;
        return invalidate();
      }
      if (S.point) moveTo([S.point[0] + moves[event.key][0], S.point[1] + moves[event.key][1]]);
    } else if (event.key === "+" || event.key === "-") {
      zoom(event.key === "+" ? 1.25 : 0.8, S.box.width / 2, S.box.height / 2);
    }
  });
  new ResizeObserver(invalidate).observe(map);
}

// ---- samples, interpolations, classes

function showStrip(result, title) {
  S.strip = result.latents ? { latents: result.latents, label: label() } : null;
  fillRow($("strip"), result, currentRun().shown_shape, title,
    result.latents ? (i) => setLatents(row(result.latents, i)) : null);
}

function sampleBody(count) {
  const cluster = currentRun().clusters ? $("cluster").value : "";
  return {
    count, temperature: Number($("temperature").value) || 0, seed: Math.max(0, Math.floor(Number($("seed").value) || 0)),
    label: label(), cluster: cluster === "" ? null : Number(cluster),
  };
}

const shellQuoted = (word) => (/^[\w@%+=:,.\/-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);

function generateCommand(body) {
  let text = `vaekit generate ${currentRun().argument} --count ${body.count} --seed ${body.seed}`;
  if (body.temperature !== 1) text += ` --temperature ${body.temperature}`;
  if (body.label !== null) text += ` --label ${shellQuoted(currentRun().classes[body.label])}`;
  if (body.cluster !== null) text += ` --cluster ${body.cluster}`;
  return text;
}

async function sample(count) {
  const body = sampleBody(count);
  const result = await request(`${base()}/sample`, body);
  if (count === 1) {
    S.samples += 1;
    setLatents(result.latents, { decode: false });
    showImage(result, generateCommand(body));
  } else {
    showStrip(result, (i) => `sample ${i + 1}`);
    $("save-status").textContent = generateCommand(body);
  }
  $("seed").value = body.seed + 1;
}

async function showInterpolation() {
  if (!S.start || !S.end) return;
  const steps = Math.min(60, Math.max(2, Math.floor(Number($("steps").value) || 11)));
  const body = { start: S.start.latents, end: S.end.latents, steps, label: label() };
  const result = await request(`${base()}/interpolate`, body);
  showStrip(result, (i) => `step ${i + 1} of ${result.count}`);
}

async function save(kind) {
  const chosen = S.strip ?? { latents: S.latents, label: label() };
  const result = await request(`${base()}/save`, { ...chosen, kind });
  $("save-status").textContent = `${result.path}   reproduce with: ${result.command}`;
}

// ---- the user's own images

async function encode(image, centre) {
  const invert = !centre && $("invert").checked, box = $("reconstructions");
  box.replaceChildren();
  for (let i = 0; i < S.runs.length; i++) {
    const run = S.runs[i];
    if (run.unreadable) continue;
    const result = await request(`api/runs/${i}/encode`, { image, invert, centre });
    const figure = document.createElement("figure"), pair = document.createElement("div"), caption = document.createElement("figcaption");
    pair.className = "images";
    for (const [pixels, text] of [[result.input, "input as the model sees it"], [result.reconstruction, "reconstruction"]]) {
      const canvas = document.createElement("canvas");
      paintImage(canvas, decodeBase64(pixels), 0, run.shown_shape);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${run.name}: ${text}`);
      pair.append(canvas);
    }
    const parts = [S.runs.length > 1 ? run.name : "", result.label === null ? "" : `class ${run.classes[result.label]}`,
      result.elbo === null ? "" : `ELBO ${result.elbo.toFixed(1)}`];
    caption.textContent = parts.filter(Boolean).join(", ");
    figure.append(pair, caption);
    box.append(figure);
    if (i === S.run && result.label !== null) $("label").value = result.label;
    if (i === S.run) setLatents(result.latents, { scales: result.scales });
  }
}

async function encodeFile(file) {
  if (!file) return;
  if (currentRun().unreadable) return showError(currentRun().unreadable);
  if (file.size > 3e6) return showError("the image file is larger than 3 MB");
  const content = new Uint8Array(await file.arrayBuffer());
  let raw = "";
  for (let i = 0; i < content.length; i += 8192) raw += String.fromCharCode(...content.subarray(i, i + 8192));
  await encode(btoa(raw), false);
}

function setUpPad() {
  const pad = $("pad"), ctx = pad.getContext("2d");
  const clear = () => { ctx.fillStyle = "#000"; ctx.fillRect(0, 0, pad.width, pad.height); };
  clear();
  ctx.lineWidth = 20; ctx.lineCap = ctx.lineJoin = "round"; ctx.strokeStyle = "#fff";
  let last = null;
  const at = (event) => {
    const box = pad.getBoundingClientRect();
    return [(event.clientX - box.left) * pad.width / box.width, (event.clientY - box.top) * pad.height / box.height];
  };
  const stroke = (to) => { ctx.beginPath(); ctx.moveTo(...last); ctx.lineTo(...to); ctx.stroke(); last = to; };
  pad.addEventListener("pointerdown", (event) => { pad.setPointerCapture(event.pointerId); last = at(event); stroke(last); });
  pad.addEventListener("pointermove", (event) => { if (last) stroke(at(event)); });
  pad.addEventListener("pointerup", () => {
    if (!last) return;
    last = null;
    encode(pad.toDataURL("image/png").split(",")[1], true).catch(() => {});
  });
  $("clear").onclick = () => { clear(); $("reconstructions").replaceChildren(); };
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

// ---- training curves and metrics

async function showCurves() {
  const all = await Promise.all(S.runs.map((_, i) => request(`api/runs/${i}/curves`)));
  const canvas = $("curves"), ctx = canvas.getContext("2d"), [w, h] = [canvas.width, canvas.height];
  const style = getComputedStyle(document.body);
  const key = "validation_objective";
  const lines = all.map((epochs) => epochs.filter((e) => e[key] !== null).map((e) => [e.epoch, e[key]]));
  const points = lines.flat();
  ctx.clearRect(0, 0, w, h);
  if (points.length === 0) return;
  const values = points.map((p) => p[1]).sort((a, b) => a - b);
  const low = values[Math.floor(values.length * 0.05)], high = values[values.length - 1];
  const last = Math.max(...points.map((p) => p[0]));
  const x = (e) => 70 + (w - 90) * (last > 1 ? (e - 1) / (last - 1) : 0.5);
  const y = (v) => h - 36 - (h - 56) * Math.max(-0.05, Math.min(1, (v - low) / (high - low || 1)));
  ctx.fillStyle = style.color; ctx.font = "12px system-ui, sans-serif";
  for (const v of [low, (low + high) / 2, high]) ctx.fillText(v.toFixed(1), 8, y(v) + 4);
  ctx.fillText("epoch 1", 70, h - 14); ctx.fillText(String(last), w - 30, h - 14);
  ctx.fillText("validation objective, nats", 70, 14);
  lines.forEach((line, i) => {
    ctx.strokeStyle = S.palette[i % S.palette.length]; ctx.lineWidth = 2;
    ctx.beginPath();
    line.forEach(([e, v], j) => (j ? ctx.lineTo(x(e), y(v)) : ctx.moveTo(x(e), y(v))));
    ctx.stroke();
  });
  const table = document.createElement("table");
  const columns = ["run", "best epoch", "validation ELBO", "log-likelihood", "KL"];
  const keys = ["epoch", "validation_elbo", "validation_log_likelihood", "validation_kl"];
  const line = (cells, kind) => {
    const tr = document.createElement("tr");
    for (const text of cells) { const cell = document.createElement(kind); cell.textContent = text; tr.append(cell); }
    table.append(tr);
    return tr;
  };
  line(columns, "th");
  S.runs.forEach((run, i) => {
    const cells = keys.map((k) => (run.best[k] === undefined ? "-" : k === "epoch" ? run.best[k] : run.best[k].toFixed(2)));
    line([run.name, ...cells], "td").firstChild.style.borderLeft = `1em solid ${S.palette[i % S.palette.length]}`;
  });
  $("metrics").replaceChildren(table);
}

// ---- start

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
    const initial = dim === 3 ? i : i === 2 ? "" : dim === 2 ? i : order[i];
    select.value = String(initial ?? 0);
  }
}

async function openRun(number) {
  S.run = number;
  S.map = S.point = S.start = S.end = S.strip = S.scales = null;
  S.hidden.clear();
  const run = currentRun(), names = run.latents.map((each) => each.name);
  $("run-info").textContent = `${run.model} on ${run.data}, ${run.shape.join(" × ")}, ${run.test_images.toLocaleString("en")} test images`
    + (run.bands ? `; shown: ${run.bands}` : "");
  $("input").hidden = run.unreadable !== "";
  $("pad").hidden = $("clear").hidden = run.shape[0] !== 1;
  $("input-title").textContent = run.unreadable ? "Your own images" : run.shape[0] === 1 ? "Draw a digit, or drop an image" : "Drop an image";
  $("unreadable").textContent = run.unreadable && `No input: ${run.unreadable}.`;
  options($("latent"), names);
  $("latent-label").hidden = names.length < 2;
  const methodNames = { dims: "dimensions", pca: "PCA", tsne: "t-SNE", umap: "UMAP" };
  options($("method"), run.methods, run.methods.map((m) => methodNames[m]));
  $("method").value = run.latents[0].dim <= 3 ? "dims" : "pca";
  $("label-label").hidden = !run.conditional;
  options($("label"), run.classes.map((_, i) => i), run.classes);
  $("cluster-label").hidden = $("colour-label").hidden = !run.clusters;
  options($("cluster"), ["", ...Array(run.clusters).keys()], ["any", ...Array(run.clusters).keys()]);
  $("colour").value = "labels";
  $("analogies").hidden = !run.conditional;
  for (const id of ["nearest", "reconstructions", "strip"]) $(id).replaceChildren();
  $("save-status").textContent = "";
  S.latents = Object.fromEntries(run.latents.map(({ name, mean }) => [name, [mean.map((v) => v ?? 0)]]));
  showDims();
  makeSliders();
  await loadMap();
  setLatents(S.latents);
  if (run.completes_images) $("caption").textContent = "This model completes images; it cannot decode latents alone.";
}

const logErrors = (work) => (...args) => Promise.resolve(work(...args)).catch((error) => console.warn(error.message));

async function init() {
  await takeToken();
  const result = await request("api/runs");
  S.runs = result.runs; S.palette = result.palette;
  options($("run"), S.runs.map((_, i) => i), S.runs.map((run) => run.name));
  setUpMap();
  setUpPad();
  $("run").onchange = logErrors(() => openRun(Number($("run").value)));
  $("latent").onchange = logErrors(() => { showDims(); return loadMap(); });
  $("method").onchange = logErrors(() => { showDims(); return loadMap(); });
  for (const id of ["dim-x", "dim-y", "dim-z"]) $(id).onchange = logErrors(loadMap);
  $("colour").onchange = () => { S.hidden.clear(); makeLegend(); invalidate(); };
  $("label").onchange = () => setLatents(S.latents);
  $("reset").onclick = () => { if (S.map) resetView(); };
  $("sample").onclick = logErrors(() => sample(1));
  $("sample-25").onclick = logErrors(() => sample(25));
  $("set-start").onclick = logErrors(() => { S.start = { latents: copy(S.latents), point: S.point }; invalidate(); return showInterpolation(); });
  $("set-end").onclick = logErrors(() => { S.end = { latents: copy(S.latents), point: S.point }; invalidate(); return showInterpolation(); });
  $("analogies").onclick = logErrors(async () => {
    const shown = await request(`${base()}/analogies`, { latents: S.latents });
    showStrip(shown, (i) => currentRun().classes[i]);
  });
  $("save-png").onclick = logErrors(() => save("png"));
  $("save-gif").onclick = logErrors(() => save("gif"));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { invalidate(); logErrors(showCurves)(); });
  await openRun(0);
  await showCurves();
}

logErrors(init)();
