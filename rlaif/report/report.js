"use strict";
// Model text is only ever set through textContent; nothing here builds markup from data.
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function number(value) {
    if (value === null || value === undefined) return "–";
    return value.toFixed(3).replace("-", "−");
  }

  function parts(values) {
    return Object.entries(values).map(([name, value]) => name + " " + number(value));
  }

  function template(hash) {
    const node = make("div", "quiet", "template ");
    node.append(make("code", "", hash));
    return node;
  }

  function folded(title, text, open) {
    const details = make("details");
    details.open = open;
    details.append(make("summary", "", title), make("pre", "", text));
    return details;
  }

  // The answers that a verdict of several rests on: who said what, by which principle.
  function behind(rows) {
    const details = make("details", "behind");
    details.open = rows.length <= 6;
    details.append(make("summary", "",
      "the " + rows.length + (rows.length === 1 ? " answer" : " answers") + " it rests on"));
    const list = make("ul", "judgements");
    for (const row of rows) {
      const item = make("li");
      const head = make("div", "verdict");
      head.append(make("strong", "", row.role));
      if (row.principle) head.append(make("span", "principle", row.principle));
      item.append(head);
      const facts = [row.annotator].concat(row.order ? ["shown " + row.order] : [], parts(row.parts));
      item.append(make("div", "quiet", facts.filter(Boolean).join(" · ")));
      if (row.template) item.append(template(row.template));
      if (row.raw) item.append(make("pre", "", row.raw));
      list.append(item);
    }
    details.append(list);
    return details;
  }

  function judgements(rows, open) {
    if (!rows.length) return make("p", "quiet", "No stored judgement of this answer.");
    const list = make("ul", "judgements");
    for (const row of rows) {
      const item = make("li");
      const head = make("div", "verdict");
      head.append(make("strong", "", row.judge));
      if (row.principle) head.append(make("span", "principle", row.principle));
      const value = make("span", "value " + row.status,
        row.value === null ? row.status.replace("_", " ") : number(row.value));
      head.append(value);
      item.append(head);
      const facts = [];
      if (row.what !== "score") facts.push(row.what);
      if (row.status !== "ok") facts.push("status " + row.status.replace("_", " "));
      if (row.order) facts.push("shown " + row.order);
      if (row.mass !== null) facts.push("label mass " + number(row.mass));
      if (row.raw_value !== null) facts.push("raw value " + number(row.raw_value));
      facts.push(...parts(row.parts));
      if (facts.length) item.append(make("div", "quiet", facts.join(" · ")));
      if (row.template) item.append(template(row.template));
      if (row.raw) item.append(folded("what the judge wrote", row.raw, Boolean(open)));
      if (row.behind.length) item.append(behind(row.behind));
      list.append(item);
    }
    return list;
  }

  function side(title, className, text, score, judged, open) {
    const box = make("article", "side " + className);
    const head = make("header");
    head.append(make("h4", "", title));
    if (score !== undefined) head.append(make("span", "score", number(score)));
    box.append(head, make("div", "text", text === "" ? "(empty answer)" : text));
    if (judged) box.append(judgements(judged, open));
    return box;
  }

  function prompt(text) {
    const box = make("div", "prompt");
    box.append(make("h4", "", "Prompt"), make("div", "text", text));
    return box;
  }

  function showPair(pair, view) {
    const facts = make("p", "facts");
    if (data.arms) facts.append(make("span", "", "arm " + pair.arm));
    facts.append(make("span", "", "seed " + pair.seed), make("span", "", "round " + pair.round),
      make("span", "", "margin " + number(pair.margin)), make("span", "", pair.source));
    const why = make("p", "why");
    why.append(make("strong", "", "Why this pair: "), document.createTextNode(pair.reason));
    const sides = make("div", "sides two");
    sides.append(
      side("Chosen", "chosen", pair.chosen, pair.score_chosen, pair.judged_chosen),
      side("Rejected", "rejected", pair.rejected, pair.score_rejected, pair.judged_rejected));
    view.append(facts, prompt(pair.prompt), why, sides, make("p", "quiet id", pair.id));
  }

  function showAnswers(entry, view) {
    const sides = make("div", "sides");
    for (const model of entry.models) {
      const title = model.model + (model.finish && model.finish !== "stop"
        ? " · ended: " + model.finish : "");
      sides.append(side(title, "", model.text));
    }
    view.append(make("p", "facts", "seed " + entry.seed), prompt(entry.prompt), sides);
  }

  function showRevision(entry, view) {
    const facts = make("p", "facts");
    if (data.arms) facts.append(make("span", "", "arm " + entry.arm));
    facts.append(make("span", "", "seed " + entry.seed), make("span", "", "round " + entry.round),
      make("span", "", entry.step), make("span", "", "revised by " + entry.by));
    const sides = make("div", "sides");
    sides.append(side("Answer" + (entry.model ? " by " + entry.model : ""), "", entry.original));
    entry.turns.forEach((turn, number) => {
      const failed = turn.error && turn.revision === "";
      const box = side("Revision " + (number + 1) + (failed ? " · failed" : ""), "",
        failed ? turn.error : turn.revision);
      const head = make("div", "verdict");
      head.append(make("strong", "", "by principle"), make("span", "principle", turn.principle));
      box.append(head);
      if (turn.critique) box.append(folded("the critique before it", turn.critique, true));
      box.append(make("p", "quiet id", turn.id));
      sides.append(box);
    });
    view.append(facts, prompt(entry.prompt), sides, make("p", "quiet id", "parent " + entry.id));
  }

  function showMistake(entry, view) {
    const facts = make("p", "facts");
    facts.append(make("span", "", "judge " + entry.judge));
    if (entry.subset) facts.append(make("span", "", entry.subset));
    facts.append(make("span", "", entry.gap), make("span", "", entry.order),
      make("span", "", "P(better) by the judge " + number(entry.prob)),
      make("span", "", "by the label " + number(entry.label)));
    const sides = make("div", "sides two");
    const [better, picked] = entry.lengths.map((n) => " · " + n + " characters");
    const alone = entry.judged_both.length === 0;
    sides.append(
      side("Better by the label" + better, "chosen", entry.better, undefined,
        alone ? entry.judged_better : undefined, true),
      side("Picked by the judge" + picked, "rejected", entry.picked, undefined,
        alone ? entry.judged_picked : undefined, true));
    view.append(facts, prompt(entry.prompt), sides);
    if (!alone) {
      view.append(make("h4", "said", "What the judge said · shown: the place of the better answer"),
        judgements(entry.judged_both, true));
    }
    view.append(make("p", "quiet id", entry.place + " · " + entry.id));
  }

  function fill(select, values, label) {
    for (const value of values) {
      const option = make("option", "", typeof value === "number" ? label + " " + value : value);
      option.value = String(value);
      select.append(option);
    }
  }

  function distinct(values) {
    return Array.from(new Set(values)).sort((a, b) => (a < b ? -1 : a > b ? 1 : 0));
  }

  // One browser: `name` is both the prefix of its elements' ids and its key in the URL's hash.
  function browser(name, rows, show, haystack, keys) {
    const root = document.getElementById(name + "-browser");
    if (!root) return null;
    const find = (part) => document.getElementById(name + "-" + part);
    const view = find("view"), count = find("count"), search = find("search");
    const selects = keys.map((key) => [key, find(key)]).filter((pair) => pair[1]);
    let matching = rows, place = 0;

    for (const [key, select] of selects) {
      fill(select, distinct(rows.map((row) => row[key])), key);
    }

    function render() {
      view.replaceChildren();
      find("prev").disabled = place <= 0;
      find("next").disabled = place >= matching.length - 1;
      count.textContent = matching.length ? place + 1 + " of " + matching.length : "none";
      if (matching.length) show(matching[place], view);
      else view.append(make("p", "quiet", "Nothing matches."));
    }

    function filter() {
      const wanted = search.value.trim().toLowerCase();
      matching = rows.filter((row) =>
        selects.every(([key, s]) => s.value === "" || String(row[key]) === s.value) &&
        (wanted === "" || haystack(row).toLowerCase().includes(wanted)));
      place = 0;
      render();
    }

    function go(to) {
      if (to < 0 || to >= matching.length) return;
      place = to;
      render();
      history.replaceState(null, "", "#" + name + "=" + (place + 1));
    }

    search.addEventListener("input", filter);
    for (const [, select] of selects) select.addEventListener("change", filter);
    find("prev").addEventListener("click", () => go(place - 1));
    find("next").addEventListener("click", () => go(place + 1));
    root.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      if (["INPUT", "SELECT"].includes(event.target.tagName)) return;
      if (event.key === "ArrowRight" || event.key === "j") go(place + 1);
      if (event.key === "ArrowLeft" || event.key === "k") go(place - 1);
    });

    function follow() {
      const match = location.hash.match(new RegExp("^#" + name + "=(\\d+)$"));
      if (!match) return;
      go(Math.min(Math.max(Number(match[1]), 1), matching.length) - 1);
      root.scrollIntoView();
    }

    window.addEventListener("hashchange", follow);
    filter();
    follow();
    return go;
  }

  browser("pair", data.pairs, showPair,
    (row) => [row.prompt, row.chosen, row.rejected, row.reason, row.id].join("\n"),
    ["arm", "seed", "round"]);
  browser("answer", data.answers, showAnswers,
    (row) => [row.prompt].concat(row.models.map((model) => model.text)).join("\n"), []);
  browser("revision", data.revisions || [], showRevision,
    (row) => [row.prompt, row.original, row.id].concat(
      ...row.turns.map((turn) => [turn.revision, turn.critique, turn.principle])).join("\n"),
    ["arm", "seed", "round"]);
  browser("mistake", data.mistakes || [], showMistake,
    (row) => [row.prompt, row.better, row.picked, row.place, row.id].join("\n"),
    ["judge", "subset", "gap", "order"]);
})();
