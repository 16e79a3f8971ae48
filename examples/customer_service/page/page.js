"use strict";

const byId = (id) => document.getElementById(id);
const words = (name) => name.replaceAll("_", " ");
let version = 0; // of the answer in the form; 0 is a new one
let intents = [];

/** An element with a class and a text; the text is never read as HTML. */
function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** The service's JSON answer. Throws an Error with the service's message. */
async function call(method, path, body) {
  const request = { method, headers: { "Content-Type": "application/json" }, body: body && JSON.stringify(body) };
  const response = await fetch(path, request);
  const result = await response.json();
  if (!response.ok) throw new Error(result.error || response.statusText);
  return result;
}

function showEnd() {
  byId("messages").scrollTop = byId("messages").scrollHeight;
}

function say(className, text) {
  const item = element("li", className, text);
  byId("messages").append(item);
  showEnd();
  return item;
}

/** A template with its values, and each slot that nobody has filled as a frame with its name. */
function filled(reply) {
  return reply.template.split(/(\{\w+\})/).map((part) => {
    const name = /^\{(\w+)\}$/.exec(part)?.[1];
    if (!name) return part;
    return reply.slots[name] ?? element("span", "slot", words(name));
  });
}

function reason(reply) {
  const confidence = `confidence ${reply.confidence.toFixed(2)}`;
  if (reply.route === "intent") return `${words(reply.intent)}, ${confidence}. Asked before: “${reply.source_question}”`;
  if (reply.route === "retrieval") return `${words(reply.intent)}, found by the similar question “${reply.source_question}”`;
  return `Most likely ${words(reply.intent)}, but with ${confidence} only.`;
}

async function ask(event) {
  event.preventDefault();
  const question = byId("question").value;
  byId("question").value = "";
  say("asked", question);
  try {
    const reply = await call("POST", "answer", { question });
    const item = say(`told ${reply.route}`, "");
    item.append(...(reply.route === "person" ? ["I pass this on to a colleague, who will write to you."] : filled(reply)));
    item.append(element("p", "why", reason(reply)));
    showEnd();
    await showLog();
  } catch (error) {
    say("told failed", error.message);
  }
}

/** A menu of all answers, by which a question of the log is corrected. */
function corrections(row) {
  const menu = element("select");
  menu.setAttribute("aria-label", "Right answer");
  menu.append(new Option("as answered", ""), ...intents.map((intent) => new Option(words(intent), intent)));
  menu.value = row.correction ?? "";
  menu.options[0].disabled = true;
  menu.addEventListener("change", () => call("PUT", `log/${row.id}/correction`, { intent: menu.value }));
  return menu;
}

async function showLog() {
  const rows = (await call("GET", "log?limit=50")).map((row) => {
    const line = element("tr");
    const how = element("td", "", row.route === "person" ? "a person" : words(row.intent));
    how.append(element("br"), element("small", "", `confidence ${row.confidence.toFixed(2)}`));
    const menu = element("td");
    menu.append(corrections(row));
    line.append(element("td", "", row.question), how, menu);
    return line;
  });
  document.querySelector("#log tbody").replaceChildren(...rows);
}

function edit(answer) {
  version = answer?.version ?? 0;
  byId("intent").value = answer?.intent ?? "";
  byId("intent").readOnly = version > 0;
  byId("answer").value = answer?.answer ?? "";
  byId("questions").value = "";
  byId("saved").value = "";
  byId("remove").disabled = version === 0;
}

async function showAnswers() {
  const answers = await call("GET", "answers");
  intents = answers.map((answer) => answer.intent);
  const rows = answers.map((answer) => {
    const line = element("tr");
    const cells = [words(answer.intent), answer.answer, String(answer.num_questions)];
    line.append(...cells.map((text) => element("td", "", text)));
    line.addEventListener("click", () => edit(answer));
    return line;
  });
  document.querySelector("#answers tbody").replaceChildren(...rows);
}

async function change(method, body) {
  try {
    const result = await call(method, `answers/${encodeURIComponent(byId("intent").value.trim())}`, body);
    await showAnswers();
    await showLog();
    if (method === "DELETE") edit(null);
    else [version, byId("remove").disabled, byId("intent").readOnly] = [result.version, false, true];
    byId("saved").value = method === "DELETE" ? "Deleted" : "Saved";
  } catch (error) {
    byId("saved").value = error.message;
  }
}

function save(event) {
  event.preventDefault();
  const questions = byId("questions").value.split("\n").filter((line) => line.trim());
  change("PUT", { answer: byId("answer").value, questions, version });
}

function show(tab) {
  for (const button of document.querySelectorAll("nav button")) {
    const isChosen = button.dataset.tab === tab;
    button.setAttribute("aria-pressed", isChosen);
    byId(button.dataset.tab).hidden = !isChosen;
  }
}

async function start() {
  const { is_generated: isGenerated, precision, num_answers: count } = await call("GET", "status");
  const source = isGenerated ? "Trained on generated questions. " : "";
  byId("status").textContent = `${source}${count} answers. Thresholds chosen for a precision of ${precision}.`;
  await showAnswers();
  await showLog();
  byId("question").focus();
}

byId("ask").addEventListener("submit", ask);
byId("edit").addEventListener("submit", save);
byId("remove").addEventListener("click", () => change("DELETE"));
byId("clear").addEventListener("click", () => edit(null));
for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => show(button.dataset.tab));
start().catch((error) => say("told failed", error.message));
