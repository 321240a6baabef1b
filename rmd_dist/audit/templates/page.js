"use strict";

const PAGE_SIZE = 200;
const KINDS = ["keep", "relabel", "drop", "unsure"];
const OFFER = "Other…";

const data = JSON.parse(byId("data").textContent);
const { audit, cases, classes, pictures } = data;
const enlarged = new Set(data.enlarged);
const STORE = `rmd-audit:${audit}`;

// A position is the place of an image in `cases`.
let decisions = new Map(); // position -> {kind, label}
let downloaded = true; // whether decisions.csv as last downloaded says the same
let shown = []; // positions that pass the filters, as they were when a filter was last set
let page = 0;
let current = null; // position of the card that had the focus last
const done = []; // {position, before, chosen} for each decision, to undo it

function byId(id) {
  return document.getElementById(id);
}

// Text: names may be of any length and in any direction.

function clipped(text, length) {
  const letters = [...text];
  return letters.length > length ? letters.slice(0, length - 1).join("") + "…" : text;
}

function isolated(name) {
  // For an <option>, which holds text alone: characters keep the direction of the name to itself.
  return `\u2068${clipped(name, 60)}\u2069`;
}

function percent(p) {
  if (p === null) return "";
  if (p > 0 && p < 0.005) return "<1 %";
  if (p < 1 && p > 0.995) return ">99 %";
  return `${Math.round(100 * p)} %`;
}

function put(element, text) {
  element.textContent = text;
  element.title = text;
}

function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

// Decisions, kept by the browser under the audit's id.

function decisionOf(position, kind, label) {
  const { given, suggested } = cases[position];
  if (kind === "relabel") {
    const wanted = label ?? suggested;
    return wanted === given ? { kind: "keep", label: given } : { kind, label: wanted };
  }
  return { kind, label: kind === "drop" ? -1 : given };
}

function same(one, other) {
  return one?.kind === other?.kind && one?.label === other?.label;
}

function set(position, decision) {
  if (decision) decisions.set(position, decision);
  else decisions.delete(position);
  downloaded = decisions.size === 0;
  keep();
  showDecision(position);
  showProgress();
}

function decide(position, kind) {
  const before = decisions.get(position);
  const decision = decisionOf(position, kind);
  const takenBack = same(before, decision);
  done.push({ position, before });
  set(position, takenBack ? undefined : decision);
  if (takenBack) say(`${position + 1}: undecided again`);
  else goToUndecided(position);
}

function choose(position, label) {
  // Arrow keys in a closed <select> choose at every step: one undo is for all of them, and the focus stays.
  const last = done.at(-1);
  if (!(last?.chosen && last.position === position)) {
    done.push({ position, before: decisions.get(position), chosen: true });
  }
  set(position, decisionOf(position, "relabel", label));
}

function undo() {
  const last = done.pop();
  if (!last) return say("Nothing to undo");
  set(last.position, last.before);
  if (!shown.includes(last.position)) clearFilters();
  focusOn(last.position);
}

function keep() {
  const entries = [...decisions].map(([position, { kind, label }]) => [cases[position].index, kind, label]);
  try {
    localStorage.setItem(STORE, JSON.stringify({ entries, downloaded }));
  } catch {
    byId("unkept").hidden = false; // pages from files may be refused it
  }
}

function restore() {
  const positions = new Map(cases.map((item, position) => [item.index, position]));
  let kept = null;
  try {
    kept = JSON.parse(localStorage.getItem(STORE));
  } catch {
    byId("unkept").hidden = false;
  }
  if (!Array.isArray(kept?.entries)) return;
  const known = kept.entries.filter(([index, kind]) => positions.has(index) && KINDS.includes(kind));
  decisions = new Map(
    known.map(([index, kind, label]) => {
      const position = positions.get(index);
      return [position, decisionOf(position, kind, classes[label] === undefined ? undefined : label)];
    }),
  );
  downloaded = kept.downloaded === true;
}

function followOtherTab(event) {
  if (event.key !== STORE) return;
  restore();
  showPage();
}

// Cards.

function picture(key, alt, image = new Image()) {
  image.dataset.key = key;
  image.alt = alt;
  image.classList.toggle("enlarged", enlarged.has(key));
  return image;
}

// Browsers do not put off pictures that are in the page itself; 800 at once would take as long as all the rest.
const nearby = new IntersectionObserver(loadPictures, { rootMargin: "1000px" });

function loadPictures(entries) {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    nearby.unobserve(target);
    for (const image of target.querySelectorAll("img")) {
      image.src = `data:image/jpeg;base64,${pictures[image.dataset.key]}`;
    }
  }
}

function card(position) {
  const item = cases[position];
  const suggested = classes[item.suggested];
  const article = byId("card").content.firstElementChild.cloneNode(true);
  const part = (selector) => article.querySelector(selector);
  article.dataset.position = position;
  part(".rank").textContent = position + 1;
  put(part(".path"), item.path || `image ${item.index}`);
  if (item.path.length > 40) part(".path").textContent = `…${[...item.path].slice(-36).join("")}`;
  picture(item.picture, `${item.path || `image ${item.index}`}, labelled ${classes[item.given]}`, part(".doubted"));
  put(part(".given .name"), classes[item.given]);
  put(part(".suggested .name"), suggested);
  part(".given .p").textContent = percent(item.p_given);
  part(".suggested .p").textContent = percent(item.p_suggested);
  part(".examples").prepend(...item.examples.map((key) => picture(key, `example of ${suggested}`)));
  part(".examples").hidden = item.examples.length === 0;
  part(".marks").append(...marks(item));
  part("select").append(new Option(OFFER, ""));
  return article;
}

function marks(item) {
  const texts = [];
  if (item.duplicate_of) texts.push(`duplicate of ${item.duplicate_of}`);
  if (item.conflict) texts.push("labels of the duplicates differ");
  return texts.map((text) => {
    const mark = document.createElement("span");
    put(mark, clipped(text, 120));
    mark.title = text;
    return mark;
  });
}

function offerClasses(select) {
  // Filled when it is needed: 200 lists of 1 000 classes would take seconds.
  if (select.dataset.filled) return;
  const { value } = select;
  select.replaceChildren(new Option(OFFER, ""), ...classes.map((name, label) => new Option(isolated(name), label)));
  select.value = value;
  select.dataset.filled = true;
}

function showDecision(position) {
  const article = cardOf(position);
  if (!article) return;
  const item = cases[position];
  const decision = decisions.get(position);
  const words = decision ? inWords(decision) : "";
  if (decision) article.dataset.kind = decision.kind;
  else delete article.dataset.kind;
  put(article.querySelector(".badge"), words);
  for (const button of article.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", button.dataset.kind === decision?.kind);
  }
  showChoice(article.querySelector("select"), decision, item);
  article.setAttribute(
    "aria-label",
    `${position + 1} of ${cases.length}: given ${classes[item.given]}, suggested ${classes[item.suggested]}, ` +
      (words || "undecided"),
  );
}

function showChoice(select, decision, item) {
  const other = decision?.kind === "relabel" && decision.label !== item.suggested;
  if (other && !select.dataset.filled) select.append(new Option(isolated(classes[decision.label]), decision.label));
  select.value = other ? decision.label : "";
}

function inWords({ kind, label }) {
  return kind === "relabel" ? `→ ${classes[label]}` : kind;
}

function cardOf(position) {
  return document.querySelector(`.card[data-position="${position}"]`);
}

function positionOf(element) {
  const article = element?.closest(".card");
  return article ? Number(article.dataset.position) : null;
}

// Filters, pages, progress.

function showFilters() {
  const pairs = new Map();
  for (const { given, suggested } of cases) {
    const pair = `${given},${suggested}`;
    pairs.set(pair, (pairs.get(pair) ?? 0) + 1);
  }
  const byCount = [...pairs].sort((one, other) => other[1] - one[1]);
  byId("pair").append(new Option(`all (${cases.length})`, ""), ...byCount.map(pairOption));
  byId("kind").append(...["", "undecided", ...KINDS].map((kind) => new Option("", kind)));
}

function pairOption([pair, count]) {
  const [given, suggested] = pair.split(",").map((label) => isolated(classes[label]));
  return new Option(`${given} → ${suggested} (${count})`, pair);
}

function showProgress() {
  const counts = { "": cases.length, undecided: cases.length - decisions.size };
  for (const kind of KINDS) counts[kind] = 0;
  for (const { kind } of decisions.values()) counts[kind] += 1;
  for (const choice of byId("kind").options) choice.text = `${choice.value || "all"} (${counts[choice.value]})`;
  byId("progress").textContent = `${decisions.size} of ${cases.length} decided`;
  byId("meter").max = cases.length || 1;
  byId("meter").value = decisions.size;
  byId("download").disabled = decisions.size === 0;
}

function passes(position) {
  const { given, suggested } = cases[position];
  const pair = byId("pair").value;
  const kind = byId("kind").value;
  const state = decisions.get(position)?.kind ?? "undecided";
  return (!pair || pair === `${given},${suggested}`) && (!kind || kind === state);
}

function filter() {
  shown = [...cases.keys()].filter(passes);
  page = 0;
  showPage();
}

function clearFilters() {
  byId("pair").value = "";
  byId("kind").value = "";
  filter();
}

function showPage() {
  const first = page * PAGE_SIZE;
  const positions = shown.slice(first, first + PAGE_SIZE);
  const articles = positions.map(card);
  nearby.disconnect();
  byId("cards").replaceChildren(...articles);
  articles.forEach((article) => nearby.observe(article));
  positions.forEach(showDecision);
  byId("none").hidden = shown.length > 0;
  byId("range").textContent = shown.length ? `${first + 1} to ${first + positions.length} of ${shown.length}` : "";
  byId("previous").disabled = page === 0;
  byId("next").disabled = first + PAGE_SIZE >= shown.length;
  showProgress();
}

function turn(by) {
  page += by;
  showPage();
  focusOn(shown[page * PAGE_SIZE]);
}

// Focus.

function focusOn(position, options) {
  const wanted = Math.floor(shown.indexOf(position) / PAGE_SIZE);
  if (wanted !== page) {
    page = wanted;
    showPage();
  }
  cardOf(position).focus(options);
}

function goToUndecided(position) {
  const place = shown.indexOf(position);
  const order = [...shown.slice(place + 1), ...shown.slice(0, place)];
  const next = order.find((other) => !decisions.has(other));
  if (next !== undefined) return focusOn(next);
  focusOn(position);
  const left = cases.length - decisions.size;
  return say(left ? `All ${shown.length} of this list are decided, ${left} others are not` : "All are decided");
}

function move(position, by) {
  const place = shown.indexOf(position) + by;
  if (place >= 0 && place < shown.length) focusOn(shown[place]);
}

function comeBack() {
  // A click beside the cards took the focus: the first key brings it back, and decides nothing unseen.
  const place = shown.includes(current) ? current : shown[page * PAGE_SIZE];
  if (place !== undefined) focusOn(place);
}

function columns() {
  const all = [...document.querySelectorAll(".card")];
  return all.filter((article) => article.offsetTop === all[0].offsetTop).length;
}

function say(text) {
  byId("status").textContent = text;
}

// Keys.

const KEYS = {
  ArrowRight: (position) => move(position, 1),
  ArrowLeft: (position) => move(position, -1),
  ArrowDown: (position) => move(position, columns()),
  ArrowUp: (position) => move(position, -columns()),
  k: (position) => decide(position, "keep"),
  r: (position) => decide(position, "relabel"),
  d: (position) => decide(position, "drop"),
  u: (position) => decide(position, "unsure"),
  l: openChoice,
};

function openChoice(position) {
  const select = cardOf(position).querySelector("select");
  offerClasses(select);
  select.focus();
  try {
    select.showPicker();
  } catch {
    // An older browser opens it by the space bar.
  }
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  if (event.target.closest("select")) return onKeyInSelect(event);
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const position = positionOf(event.target);
  if (key === "?") byId("keys").showModal();
  else if (key === "z") undo();
  else if (position !== null && KEYS[key] && !(event.repeat && key.length === 1)) KEYS[key](position);
  else if (event.target === document.body && KEYS[key] && !/Up|Down/.test(key)) comeBack();
  else return;
  event.preventDefault();
}

function onKeyInSelect(event) {
  const position = positionOf(event.target);
  if (position === null) return;
  if (event.key === "Escape") focusOn(position);
  if (event.key === "Enter" && decisions.has(position)) {
    event.preventDefault();
    goToUndecided(position);
  }
}

// Download.

function quoted(value) {
  const text = String(value);
  return /[",;\t\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function table() {
  const positions = [...decisions.keys()].sort((one, other) => one - other);
  const rows = positions.map((position) => {
    const { index, path } = cases[position];
    const { kind, label } = decisions.get(position);
    return [audit, index, path, kind, kind === "drop" ? "" : classes[label]];
  });
  const lines = [["audit", "index", "path", "decision", "label"], ...rows];
  return lines.map((line) => `${line.map(quoted).join(",")}\r\n`).join("");
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.download = "decisions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  downloaded = true;
  keep();
  say(`${plural(decisions.size, "decision")} downloaded`);
}

function warn(event) {
  if (!downloaded) event.preventDefault();
}

// Start.

function onClick(event) {
  const button = event.target.closest("button");
  const position = positionOf(event.target);
  if (position === null) return;
  if (button) decide(position, button.dataset.kind);
  else if (!event.target.closest("select")) cardOf(position).focus();
}

function onChoice(event) {
  if (event.target.value !== "") choose(positionOf(event.target), Number(event.target.value));
}

function onFocus(event) {
  current = positionOf(event.target) ?? current;
  if (event.target.matches("select")) offerClasses(event.target);
}

function showPair(event) {
  const button = event.target.closest("[data-pair]");
  if (!button) return;
  byId("kind").value = "";
  byId("pair").value = button.dataset.pair;
  filter();
  focusOn(shown[0]);
}

function listen() {
  const cards = byId("cards");
  cards.addEventListener("click", onClick);
  cards.addEventListener("change", onChoice);
  cards.addEventListener("pointerdown", onFocus);
  cards.addEventListener("focusin", onFocus);
  byId("pair").addEventListener("change", filter);
  byId("kind").addEventListener("change", filter);
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("download").addEventListener("click", download);
  byId("help").addEventListener("click", () => byId("keys").showModal());
  document.querySelector(".confusions").addEventListener("click", showPair);
  document.addEventListener("keydown", onKey);
  window.addEventListener("storage", followOtherTab);
  window.addEventListener("beforeunload", warn);
}

restore();
showFilters();
filter();
listen();
const first = shown.find((position) => !decisions.has(position));
if (first !== undefined) focusOn(first, { preventScroll: true });
