// The page of a person who votes. A vote is put into the browser's storage before it is sent, and is
// taken out of it when the server has answered that it is committed; it is sent again until then,
// under the same id. The texts of items come from the server as sanitised HTML.
(() => {
  "use strict";
  const page = document.body.dataset;
  const pairs = page.kind === "pair";
  const at = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const LONGEST_WAIT = 30000;
  const LOOK_AGAIN = 20000;

  let item = null;
  let shownAt = 0;
  let busy = true;
  let last = null;
  let running = false;
  let again = false;
  let wait = 1000;
  let timer = null;

  // ---- what is not sent yet

  const memory = { unsent: [] };
  let stored = true;

  function readUnsent() {
    if (!stored) return memory.unsent;
    try {
      return JSON.parse(localStorage.getItem(page.storage + ".unsent") || "[]");
    } catch {
      return memory.unsent;
    }
  }

  function writeUnsent(rows) {
    memory.unsent = rows;
    try {
      localStorage.setItem(page.storage + ".unsent", JSON.stringify(rows));
      stored = true;
    } catch {
      stored = false;
    }
  }

  const newId = () =>
    [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");

  const push = (path, body) => writeUnsent([...readUnsent(), { id: newId(), path, body }]);
  const drop = (id) => writeUnsent(readUnsent().filter((row) => row.id !== id));

  addEventListener("beforeunload", (event) => {
    if (!stored && readUnsent().length) event.preventDefault();
  });

  // ---- the server

  async function post(path, body) {
    const response = await fetch(path, {
      method: "POST",
      credentials: "same-origin",
      headers: { "Content-Type": "application/json", "X-Form-Token": page.formToken },
      body: JSON.stringify(body),
    });
    let answer = {};
    try {
      answer = await response.json();
    } catch {
      // A proxy's page; the status says enough.
    }
    return { status: response.status, answer };
  }

  // Sends what is waiting, oldest first; whether all of it was answered.
  async function flush() {
    for (let row = readUnsent()[0]; row; row = readUnsent()[0]) {
      const { status, answer } = await tryPost(row.path, row.body);
      if (status === 200) {
        drop(row.id);
        wait = 1000;
        afterSent(row, answer);
      } else if ([400, 409, 413, 422].includes(status)) {
        drop(row.id);
        tell(`The vote was refused: ${answer.error || status}`);
      } else {
        failed(status, answer);
        return false;
      }
    }
    return true;
  }

  // A reply of status 0 where there was none.
  async function tryPost(path, body) {
    try {
      return await post(path, body);
    } catch {
      return { status: 0, answer: { error: "The server does not answer." } };
    }
  }

  // Says what is wrong, and tries again later unless only a new link could help.
  function failed(status, answer) {
    tell("");
    warn(answer.error || `The server answered ${status}.`);
    if ([401, 403].includes(status)) return;
    timer = setTimeout(proceed, wait);
    wait = Math.min(2 * wait, LONGEST_WAIT);
  }

  function warn(reason) {
    const count = readUnsent().length;
    const votes = count === 1 ? "1 vote is" : `${count} votes are`;
    const where = stored ? "kept in this browser and sent again" : "keep this page open";
    const said = count ? `${reason} ${votes} not sent yet: ${where}.` : reason;
    const box = at("unsent");
    // Said again only if it has changed: an alert is read out each time.
    if (box.firstElementChild.textContent !== said) box.firstElementChild.textContent = said;
    box.hidden = false;
  }

  function afterSent(row, answer) {
    showProgress(answer.progress);
    if (row.path === "/api/undo") {
      tell("Your last vote is taken back. Vote again.");
    } else if (answer.prelabels.length) {
      tell(`Saved. What AI said of it: ${answer.prelabels.join("; ")}.`);
    } else {
      tell("Saved.");
    }
  }

  // Sends what is waiting and shows the next item, unless one is in work. One at a time: who calls
  // meanwhile has it done once more.
  async function proceed() {
    again = running;
    if (running || (item && !busy)) return;
    running = true;
    clearTimeout(timer);
    if (await flush()) await showNext();
    running = false;
    if (again) proceed();
  }

  async function showNext() {
    const { status, answer } = await tryPost("/api/next", {});
    if (status !== 200) {
      failed(status, answer);
      return;
    }
    at("unsent").hidden = true;
    wait = 1000;
    showProgress(answer.progress);
    if (answer.item) showItem(answer.item);
    else showEnd(answer.state);
  }

  // ---- what is shown

  const tell = (text) => {
    at("status").textContent = text;
  };

  function showProgress({ done, complete, total, last: latest }) {
    last = latest;
    at("done").textContent = done === 1 ? "1 vote" : `${done} votes`;
    at("complete").textContent = `${complete} of ${total} items complete`;
    at("progress").max = Math.max(1, total);
    at("progress").value = complete;
    at("undo").disabled = !last;
  }

  function showItem(next) {
    item = next;
    at("prompt").replaceChildren(...next.prompt.map(makeTurn));
    next.answers.forEach((html, slot) => {
      at(slot ? "second" : "first").lastElementChild.innerHTML = html;
    });
    at("prelabels").hidden = !next.prelabels.length;
    at("prelabels").lastElementChild.replaceChildren(...next.prelabels.map((text) => make("li", text)));
    for (const set of all("[data-principle]")) set.hidden = !next.principles.includes(set.dataset.principle);
    const section = document.querySelector(".principles");
    if (section) section.hidden = !next.principles.length;
    for (const input of all("input[type=radio]")) input.checked = false;
    at("comment").value = "";
    if (pairs && page.view === "second") setView("first");
    at("finished").hidden = true;
    at("item").hidden = false;
    setBusy(false);
    shownAt = performance.now();
    scrollTo(0, 0);
    at("question-title").focus({ preventScroll: true });
  }

  function showEnd(state) {
    item = null;
    at("item").hidden = true;
    at("finished").hidden = false;
    const waiting = state === "waiting";
    at("finished-title").textContent = waiting ? "Nothing for you just now" : "That is all. Thank you!";
    at("finished").lastElementChild.textContent = waiting
      ? "Other people are working on what is left. This page looks again by itself."
      : "There is nothing left that you have not seen.";
    at("finished-title").focus();
    busy = false;
    if (waiting) timer = setTimeout(proceed, LOOK_AGAIN);
  }

  function make(tag, text, name) {
    const node = document.createElement(tag);
    node.textContent = text;
    if (name) node.className = name;
    return node;
  }

  function makeTurn(turn) {
    const roles = { system: "System prompt", user: "User", assistant: "Assistant", tool: "Tool" };
    const node = make("div", "", `turn ${turn.role}`);
    node.append(make("p", roles[turn.role] || turn.role, "role"), make("div", "", "text-html"));
    node.lastElementChild.dir = "auto";
    node.lastElementChild.innerHTML = turn.html;
    return node;
  }

  function setBusy(value) {
    busy = value;
    for (const button of all(".vote button")) button.disabled = value;
    at("undo").disabled = value || !last;
  }

  // ---- views

  function setView(view) {
    page.view = view;
    for (const button of all("[data-view]", document.querySelector(".views")))
      button.setAttribute("aria-pressed", String(button.dataset.view === view));
  }

  function chooseView(view) {
    setView(view);
    try {
      localStorage.setItem("rlaif.view", view === "both" ? "both" : "one");
    } catch {
      // It is only not remembered.
    }
  }

  function startView() {
    let known = null;
    try {
      known = localStorage.getItem("rlaif.view");
    } catch {
      // The width decides.
    }
    const narrow = matchMedia("(max-width: 40rem)").matches;
    setView((known || (narrow ? "one" : "both")) === "one" ? "first" : "both");
  }

  // ---- votes

  function readPrinciples() {
    const chosen = all("[data-principle]:not([hidden]) input:checked");
    return Object.fromEntries(chosen.map((i) => [i.closest("fieldset").dataset.principle, i.value]));
  }

  function vote(button) {
    if (busy || !item) return;
    setBusy(true);
    tell("Sending …");
    const rating = button.dataset.rating;
    push("/api/vote", {
      vote_id: newId(),
      item_id: item.item_id,
      verdict: button.dataset.verdict,
      seconds: Math.round(performance.now() - shownAt) / 1000,
      rating: rating === undefined ? null : Number(rating),
      principles: readPrinciples(),
      comment: at("comment").value,
    });
    proceed();
  }

  function undo() {
    if (busy || !last) return;
    setBusy(true);
    push("/api/undo", { vote_id: last });
    proceed();
  }

  // ---- keys

  function enterPrinciples(after) {
    const sets = all("[data-principle]:not([hidden])");
    const next = sets[sets.indexOf(after) + 1];
    const target = next ? next.querySelector("input:checked, input") : document.querySelector(".vote button");
    if (target) target.focus();
  }

  function pressKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
    const within = event.target;
    if (within === at("comment")) {
      if (event.key === "Escape") document.querySelector(".vote button").focus();
      return;
    }
    const key = event.key.toLowerCase();
    const set = within.closest("[data-principle]");
    if (set) {
      const input = set.querySelector(`input[data-key="${CSS.escape(key)}"]`);
      if (input) {
        input.checked = true;
        event.preventDefault();
        enterPrinciples(set);
        return;
      }
      // A digit that is no level here must not vote on the whole.
      if (/^[0-9]$/.test(key)) return;
    }
    const button = item && document.querySelector(`.vote [data-key="${CSS.escape(key)}"]`);
    if (button) vote(button);
    else if (key === "u") undo();
    else if (key === "c" && item) at("comment").focus();
    else if (key === "p" && item) enterPrinciples(set);
    else if (key === "v" && pairs) chooseView(page.view === "both" ? "first" : "both");
    else if (key === "x" && pairs) chooseView(page.view === "first" ? "second" : "first");
    else return;
    event.preventDefault();
  }

  for (const button of all(".vote button")) button.addEventListener("click", () => vote(button));
  for (const button of all(".views button")) button.addEventListener("click", () => chooseView(button.dataset.view));
  at("undo").addEventListener("click", undo);
  at("retry").addEventListener("click", proceed);
  addEventListener("keydown", pressKey);
  addEventListener("online", proceed);
  if (pairs) startView();
  proceed();
})();
