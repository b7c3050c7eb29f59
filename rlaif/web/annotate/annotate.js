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
  let flushing = false;
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
    if (flushing) return false;
    flushing = true;
    clearTimeout(timer);
    try {
      for (let row = readUnsent()[0]; row; row = readUnsent()[0]) {
        let reply;
        try {
          reply = await post(row.path, row.body);
        } catch {
          return keepTrying("The server does not answer.");
        }
        const { status, answer } = reply;
        if (status === 200) {
          drop(row.id);
          wait = 1000;
          afterSent(row, answer);
        } else if ([400, 409, 413, 422].includes(status)) {
          drop(row.id);
          tell(`The vote was refused: ${answer.error || status}`);
        } else if ([401, 403].includes(status)) {
          warn(`${answer.error || "Open your link again."}`);
          return false;
        } else {
          return keepTrying(answer.error || `The server answered ${status}.`);
        }
      }
      at("unsent").hidden = true;
      return true;
    } finally {
      flushing = false;
    }
  }

  function keepTrying(reason) {
    warn(reason);
    clearTimeout(timer);
    timer = setTimeout(proceed, wait);
    wait = Math.min(2 * wait, LONGEST_WAIT);
    return false;
  }

  function warn(reason) {
    const count = readUnsent().length;
    const votes = count === 1 ? "1 vote is" : `${count} votes are`;
    const where = stored ? "this browser keeps it and sends it again" : "keep this page open";
    const said = count ? `${reason} ${votes} not sent yet; ${where}.` : reason;
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

  // Sends what is waiting and shows the next item.
  async function proceed() {
    if (!(await flush())) return;
    let reply;
    try {
      reply = await post("/api/next", {});
    } catch {
      keepTrying("The server does not answer.");
      return;
    }
    if (reply.status !== 200) {
      if ([401, 403].includes(reply.status)) warn(reply.answer.error || "Open your link again.");
      else keepTrying(reply.answer.error || `The server answered ${reply.status}.`);
      return;
    }
    at("unsent").hidden = true;
    wait = 1000;
    showProgress(reply.answer.progress);
    if (reply.answer.item) showItem(reply.answer.item);
    else showEnd(reply.answer.state);
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
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
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
