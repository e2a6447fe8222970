// The packing station. Nothing here may keep the packer waiting: no answer in time is an answer, and what the packer
// says is kept on this device until the service has it.
"use strict";

const station = document.getElementById("station");
const texts = JSON.parse(station.dataset.texts);
const field = document.getElementById("code");
const verdict = document.getElementById("verdict");
const answers = document.getElementById("answers");
const overrides = document.getElementById("overrides");
const other = document.getElementById("other");
const state = document.getElementById("state");
const reasonButtons = [...overrides.querySelectorAll("button")];

const ANSWER_MS = Number(station.dataset.answerMs); // and some to paint
const REPORT_MS = 5000;
const RETRY_MS = [1000, 15000];
const UNHEARD = "not shown: no answer in time";

let turn = 0; // the scan that counts; an answer to an earlier one comes too late
let current = null; // what is advised about the parcel on the bench, and can be answered
let skew = 0; // the service's clock less ours
let recording = station.dataset.recording === "1"; // the service keeps a ledger

// --- reports: on this device until they are delivered, in order, each under a key of its own ------------------------

function openQueue() {
  return new Promise((resolve, reject) => {
    const asked = indexedDB.open("doorstep-station", 1);
    asked.onupgradeneeded = () => asked.result.createObjectStore("reports", { autoIncrement: true });
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}

class Queue {
  // Reports by a number that grows; a browser that keeps nothing keeps them in memory at least.
  constructor() {
    this.memory = new Map();
    this.next = 1;
    this.database = openQueue().catch(() => null);
  }

  async use(mode, work) {
    const database = await this.database;
    if (!database) return undefined;
    return new Promise((resolve, reject) => {
      const change = database.transaction("reports", mode, { durability: "strict" });
      const asked = work(change.objectStore("reports"));
      change.oncomplete = () => resolve(asked.result);
      change.onabort = change.onerror = () => reject(change.error);
    });
  }

  async add(report) {
    try {
      if ((await this.use("readwrite", (s) => s.add(report))) !== undefined) return;
    } catch { /* no room: in memory, then */ }
    this.memory.set(`m${this.next++}`, report);
  }

  async first() {
    const cursor = await this.use("readonly", (s) => s.openCursor()).catch(() => null);
    if (cursor) return [cursor.primaryKey, cursor.value];
    return this.memory.entries().next().value;
  }

  async remove(key) {
    if (!this.memory.delete(key)) await this.use("readwrite", (s) => s.delete(key));
  }

  async count() {
    const stored = (await this.use("readonly", (s) => s.getAll()).catch(() => null)) || [];
    return [...stored, ...this.memory.values()].filter((r) => !r.unheard).length;
  }
}

const queue = new Queue();
let delivering = false;
let pause = 0;
let timer = 0;
let refused = 0;
let tries = 0;

async function deliver() {
  if (delivering) return;
  delivering = true;
  clearTimeout(timer);
  let again = false;
  try {
    for (let next = await queue.first(); next; next = await queue.first()) {
      const [key, report] = next;
      const { status, content } = await post(report.path, report.body, REPORT_MS).catch(() => ({ status: 0 }));
      // Only the service's own word counts: the login page or the refusal of a proxy before it is no receipt.
      const ours = status === 200
        ? content?.key === report.body.key
        : String(content?.type).startsWith("urn:problem-type:doorstep:");
      // 404: the decision may be on its way still, or was never made, if nobody heard of it: tried again a few times.
      const later = !ours || (status === 404 && ++tries < (report.unheard ? 4 : 5));
      if (status === 0 || status === 408 || status === 429 || status >= 500 || later) {
        again = true;
        break;
      }
      tries = 0;
      if (status !== 200 && !report.unheard) refused += 1;
      await queue.remove(key);
    }
    if (!again) pause = 0;
  } catch {
    again = true;
  } finally {
    delivering = false;
    if (again) {
      pause = Math.min(Math.max(2 * pause, RETRY_MS[0]), RETRY_MS[1]);
      timer = setTimeout(deliver, pause);
    }
    showState();
  }
}

async function report(path, body, unheard = false) {
  await queue.add({ path, body: { key: `station-${random()}`, ...body }, unheard });
  await showState();
  deliver();
}

async function showState() {
  const waiting = await queue.count();
  const said = [];
  if (!navigator.onLine) said.push(texts.offline);
  if (waiting) said.push(texts.waiting.replace("{n}", waiting));
  if (refused) said.push(texts.refused.replace("{n}", refused));
  state.textContent = said.join(" ");
}

// --- asking ---------------------------------------------------------------------------------------------------------

function random() {
  // crypto.randomUUID is for encrypted origins only; benches often have none
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

function now() {
  return new Date(Date.now() + skew).toISOString();
}

function post(path, body, milliseconds) {
  const abort = new AbortController();
  const limit = setTimeout(() => abort.abort(), milliseconds);
  return fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal: abort.signal,
    cache: "no-store",
    credentials: "same-origin",
  }).then(async (r) => ({ status: r.status, content: await r.json().catch(() => null) }))
    .finally(() => clearTimeout(limit));
}

async function scan(code) {
  const mine = ++turn;
  const started = performance.now();
  const decision = random();
  current = null;
  show({ kind: "asking", verdict: "…" }, code);
  let found = null;
  try {
    found = await post(station.dataset.scan, { code, decision_id: decision }, ANSWER_MS);
  } catch { /* no network, or not in time */ }
  const said = found && found.status === 200 ? found.content : null;
  if (said) {
    skew = new Date(said.now).getTime() - Date.now();
    recording = said.recorded || (recording && !said.decision_id);
  }
  // Nobody has seen what the service may have decided: it is told so, or it would count as advice that was given.
  const seen = said && mine === turn;
  if (!seen && recording && (said || (!found && navigator.onLine))) {
    report(station.dataset.overrides, { decision_id: decision, reason: UNHEARD, at: now() }, true);
  }
  if (mine !== turn) return;
  if (said) {
    if (said.key && said.recorded) current = said;
    show(said, code);
  } else {
    show({ kind: "none", verdict: texts.silent }, code);
  }
  requestAnimationFrame(() => setTimeout(() => {
    station.dataset.painted = (performance.now() - started).toFixed(1);
  }));
  if (found) deliver();
}

function show(said, code = "") {
  verdict.dataset.kind = said.kind;
  document.getElementById("parcel").textContent = code;
  document.getElementById("said").textContent = said.verdict;
  const action = document.getElementById("action");
  action.textContent = said.action || "";
  action.hidden = !said.action;
  const reasons = document.getElementById("reasons");
  reasons.replaceChildren(...(said.reasons || []).map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
  reasons.hidden = !reasons.children.length;
  answers.hidden = !said.key;
  expand(false);
}

// --- answering ------------------------------------------------------------------------------------------------------

// What is said of an answer: it is noted, or there is no advice to answer, or the service keeps none of this advice.
function noted(text) {
  if (current) return text;
  return answers.hidden ? texts.unasked : texts.unkept;
}

function finish(said, send) {
  const parcel = document.getElementById("parcel").textContent;
  if (current) send(current);
  current = null;
  turn += 1;
  show({ kind: "ready", verdict: said }, parcel);
}

function done() {
  finish(noted(texts.noted_done), (c) => report(station.dataset.outcomes, {
    decision_id: c.decision_id, kind: "done", action: c.key, happened_at: now(),
  }));
}

function override(reason) {
  finish(noted(texts.noted_other), (c) => report(station.dataset.overrides, {
    decision_id: c.decision_id, reason, at: now(),
  }));
}

function expand(open) {
  overrides.hidden = !open;
  other.setAttribute("aria-expanded", String(open));
}

function accept(text) {
  const code = text.trim();
  if (!code) return;
  const control = code.toUpperCase();
  const button = reasonButtons.find((b) => b.dataset.code === control);
  if (control === station.dataset.done) done();
  else if (button) override(button.dataset.reason);
  else scan(code);
}

document.getElementById("scan").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = field.value;
  field.value = "";
  field.focus();
  accept(text);
});
document.getElementById("done").addEventListener("click", () => { done(); field.focus(); });
other.addEventListener("click", () => { expand(overrides.hidden); field.focus(); });
for (const button of reasonButtons) {
  button.addEventListener("click", () => { override(button.dataset.reason); field.focus(); });
}
document.getElementById("typing").addEventListener("click", () => {
  field.inputMode = "text"; // with a scanner the keyboard on the screen would only cover the verdict
  field.blur();
  field.focus();
});

document.addEventListener("keydown", (event) => {
  const button = reasonButtons.find((b) => b.dataset.key === event.key);
  if (event.key === station.dataset.doneKey || button) {
    event.preventDefault();
    if (button) override(button.dataset.reason);
    else done();
    field.focus();
  } else if (event.target !== field && event.key.length === 1 && event.key !== " "
      && !event.ctrlKey && !event.metaKey && !event.altKey) {
    field.focus(); // wherever the focus was, a scan arrives in the field
  }
});
document.addEventListener("click", (event) => {
  if (!event.target.closest("a, button, input")) field.focus();
});
window.addEventListener("focus", () => field.focus());
window.addEventListener("online", () => { pause = 0; deliver(); });
window.addEventListener("offline", showState);
field.focus();
deliver();

// A reload without network finds the page where the browser allows it: on encrypted origins, and on the machine itself.
if ("serviceWorker" in navigator) {
  navigator.serviceWorker.register(station.dataset.worker, { scope: "pack" }).catch(() => { /* it works without, too */ });
}
