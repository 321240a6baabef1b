// Does a review in a copy of the page, by events that a keyboard and a mouse send, and writes down what came
// of it. The page is loaded twice: what was decided in the first must be there in the second.
"use strict";

const outcome = { errors: [] };
window.addEventListener("error", (event) => outcome.errors.push(event.message));

function focused() {
  return Number(document.activeElement.closest(".card")?.dataset.position ?? -1);
}

function press(key) {
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  return focused();
}

function choose(select, value) {
  select.value = value;
  select.dispatchEvent(new Event("change", { bubbles: true }));
}

function text(selector) {
  return document.querySelector(selector).textContent;
}

function seen() {
  const cards = [...document.querySelectorAll(".card")];
  return {
    progress: text("#progress"),
    range: text("#range"),
    cards: cards.length,
    kinds: cards.map((card) => card.dataset.kind ?? "").join(" ").trim(),
    images: [...document.images].every((image) => image.complete && image.naturalWidth > 0 && image.alt),
    wide: document.documentElement.scrollWidth - innerWidth,
    width: innerWidth,
    title: document.title,
    help: document.getElementById("keys").open,
  };
}

function leavingWarns() {
  const event = new Event("beforeunload", { cancelable: true });
  window.dispatchEvent(event);
  return event.defaultPrevented;
}

async function downloaded() {
  const blobs = [];
  URL.createObjectURL = (blob) => blobs.push(blob) && "";
  HTMLAnchorElement.prototype.click = function () {
    outcome.file = this.download;
  };
  document.getElementById("download").click();
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(await blobs[0].arrayBuffer());
}

async function decoded() {
  await Promise.all([...document.images].map((image) => image.decode().catch(() => null)));
}

async function firstVisit() {
  await decoded();
  outcome.start = { ...seen(), focus: focused() };
  outcome.focus = ["k", "r", "d", "u", "ArrowRight", "ArrowLeft", "d", "z", "r"].map(press);
  outcome.pressed = document.querySelectorAll('[aria-pressed="true"]').length;
  document.querySelectorAll(".card")[6].querySelector('[data-kind="keep"]').click();
  outcome.focus.push(focused());
  press("l");
  choose(document.activeElement, 0);
  outcome.chosenStays = document.activeElement.matches("select");
  outcome.focus.push(press("Enter"));
  press("?");
  outcome.help = seen().help;
  document.querySelector("#keys button").click();
  outcome.warned = leavingWarns();
}

async function secondVisit() {
  await decoded();
  Object.assign(outcome, JSON.parse(sessionStorage.review));
  outcome.restored = seen();
  outcome.restoredFocus = focused();
  outcome.warnedAgain = leavingWarns();
  choose(document.getElementById("kind"), "relabel");
  outcome.relabelled = seen();
  choose(document.getElementById("kind"), "");
  choose(document.getElementById("pair"), "1,2");
  outcome.pair = seen();
  choose(document.getElementById("pair"), "");
  document.getElementById("next").click();
  outcome.next = { ...seen(), focus: focused() };
  outcome.csv = await downloaded();
  outcome.warnedAfter = leavingWarns();
}

async function review() {
  if (!sessionStorage.review) {
    await firstVisit();
    sessionStorage.review = JSON.stringify(outcome);
    location.reload();
    return;
  }
  await secondVisit();
  const result = document.createElement("pre");
  result.id = "outcome";
  result.textContent = JSON.stringify(outcome);
  document.body.replaceChildren(result);
}

window.addEventListener("load", () =>
  review().catch((error) => {
    document.body.textContent = `the review failed: ${error.stack}`;
  }),
);
