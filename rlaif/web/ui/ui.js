"use strict";
// Three comforts; every page works without them. What a page shows is made by the server alone.
(() => {
  const PERIOD = 2000;

  // While a run goes or an index grows: fetch this page again, and take over what has changed.
  async function refresh() {
    if (document.hidden) return;
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.body.dataset.live = page.body.dataset.live;
    for (const part of page.querySelectorAll("[data-fresh]")) {
      const old = document.getElementById(part.id);
      if (!old) {
        const before = part.previousElementSibling;
        const place = before && document.getElementById(before.id);
        if (place) place.after(document.importNode(part, true));
      } else if (old.innerHTML !== part.innerHTML && !old.contains(busy(old))) {
        replace(old, part);
      }
    }
  }

  // What a person is in the middle of is left alone: a marked text.
  function busy(root) {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && root.contains(selection.anchorNode)
      ? selection.anchorNode : null;
  }

  function replace(old, part) {
    const focus = old.contains(document.activeElement) ? document.activeElement : null;
    const marked = Array.from(old.querySelectorAll("input:checked"), (box) => box.id);
    const open = Array.from(old.querySelectorAll("details"), (one) => one.open);
    const fresh = document.importNode(part, true);
    fresh.querySelectorAll("details").forEach((one, n) => { if (open[n]) one.open = true; });
    const chosen = Array.from(old.querySelectorAll("select"), (one) => [one.name, one.value]);
    const scroll = Array.from(old.querySelectorAll(".scroll"), (one) => one.scrollLeft);
    old.replaceWith(fresh);
    fresh.querySelectorAll(".scroll").forEach((one, n) => { one.scrollLeft = scroll[n] || 0; });
    for (const id of marked) {
      const box = document.getElementById(id);
      if (box) box.checked = true;
    }
    for (const [name, value] of chosen) {
      const select = fresh.querySelector(`select[name="${name}"]`);
      if (Array.from(select.options).some((one) => one.value === value)) select.value = value;
    }
    if (focus) {
      const same = focus.id ? document.getElementById(focus.id)
        : Array.from(fresh.querySelectorAll("a")).find((link) => link.href === focus.href);
      if (same) same.focus({ preventScroll: true });
    }
  }

  async function watch() {
    while (document.body.dataset.live === "yes") {
      await new Promise((done) => setTimeout(done, PERIOD));
      try { await refresh(); } catch { /* The server was stopped: the page stays as it is. */ }
    }
  }

  // Addresses without what was not chosen.
  document.addEventListener("submit", (event) => {
    for (const field of event.target.querySelectorAll("input, select")) {
      if (field.name && field.value === "") field.disabled = true;
    }
    setTimeout(() => {
      for (const field of event.target.querySelectorAll(":disabled")) field.disabled = false;
    });
  });

  // "/" searches, "n" and "p" turn pages.
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (typing || event.ctrlKey || event.altKey || event.metaKey) return;
    const search = document.getElementById("q");
    const turn = { n: "a[rel=next]", p: "a[rel=prev]" }[event.key];
    if (event.key === "/" && search) {
      event.preventDefault();
      search.focus();
    } else if (turn) {
      const link = document.querySelector(turn);
      if (link) link.click();
    }
  });

  watch();
})();
