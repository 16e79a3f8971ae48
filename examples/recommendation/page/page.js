"use strict";

const byId = (id) => document.getElementById(id);
let history = []; // {item, text}, oldest first
let numUsers = 1;
let asked = 0; // number of the newest request for a list; answers to older ones are dropped
let searched = 0; // likewise of the search

/** An element with a text; the text is never read as HTML. */
function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  return made;
}

function button(text, label, click) {
  const made = element("button", text);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.addEventListener("click", click);
  return made;
}

/** The service's JSON answer. Throws an Error with the service's message. */
async function call(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const result = await response.json();
  if (!response.ok) throw new Error(result.error || response.statusText);
  return result;
}

function hint(text, failed = false) {
  byId("hint").textContent = text;
  byId("hint").hidden = !text;
  byId("hint").classList.toggle("failed", failed);
}

/** Run a request; what goes wrong is shown. */
async function shown(request) {
  try {
    await request();
  } catch (error) {
    hint(error.message, true);
  }
}

async function changed() {
  byId("history").replaceChildren(...history.toReversed().map((each) => {
    const row = element("li");
    const remove = button("×", `Remove ${each.text}`, () => {
      history = history.filter((other) => other.item !== each.item);
      changed();
    });
    row.append(element("span", each.text), remove);
    return row;
  }));
  const number = ++asked;
  if (!history.length) {
    byId("list").replaceChildren();
    hint("Choose a history on the left.");
    return;
  }
  await shown(async () => {
    const ranked = await call("recommendations", { history: history.slice(-100).map((each) => each.item), k: 10 });
    if (number !== asked) return;
    hint(ranked.length ? "" : "No item is left to recommend.");
    byId("list").replaceChildren(...ranked.map((each) => {
      const row = element("li");
      const reasons = element("ul");
      reasons.append(...each.reasons.map((reason) => element("li", reason)));
      const score = element("span", `${(100 * each.score).toFixed(1)}%`, "score");
      score.title = "probability by the ranker";
      row.append(score, element("span", each.text), reasons);
      return row;
    }));
    byId("list").scrollTop = 0;
  });
}

function search() {
  const text = byId("text").value.trim();
  const number = ++searched;
  if (!text) {
    byId("found").hidden = true;
    return;
  }
  shown(async () => {
    const items = await call(`items?text=${encodeURIComponent(text)}`);
    if (number !== searched) return;
    const rows = items.map((each) => {
      const row = element("li");
      row.append(button(each.text, `Add ${each.text}`, () => {
        history = [...history.filter((other) => other.item !== each.item), each];
        byId("text").value = "";
        search();
        changed();
      }));
      return row;
    });
    byId("found").replaceChildren(...(rows.length ? rows : [element("li", "no item has these words", "hint")]));
    byId("found").hidden = false;
  });
}

byId("text").addEventListener("input", search);
byId("find").addEventListener("submit", (event) => {
  event.preventDefault();
  byId("found").querySelector("button")?.click();
});
byId("clear").addEventListener("click", () => {
  history = [];
  changed();
});
byId("user").addEventListener("click", () => shown(async () => {
  history = (await call(`users/${Math.floor(Math.random() * numUsers)}`)).items;
  await changed();
}));

shown(async () => {
  const status = await call("status");
  numUsers = status.num_users;
  const source = status.is_generated ? "generated articles, which say nothing about real users" : status.source;
  byId("status").textContent = `${status.num_items.toLocaleString("en")} items, ${numUsers.toLocaleString("en")} users: ${source}`;
});
