// What all pages share: times in the viewer's zone, ages that grow, and asking again.
"use strict";

(() => {
  const EVERY = "[hx-trigger*='every']";
  const day = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "2-digit" });
  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

  // ---- times

  function showTime(time) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime()) || time.title) {
      return;
    }
    time.title = `${time.dateTime.replace("T", " ").replace("Z", "")} UTC`;
    const [first, second] = time.children;
    if (second) {
      first.textContent = day.format(at);
      second.textContent = clock.format(at);
    } else {
      time.textContent = `${day.format(at)} ${clock.format(at)}`;
    }
  }

  // both as timing.py says them

  function duration(seconds) {
    return seconds < 59.95 ? `${seconds.toFixed(seconds < 9.995 ? 2 : 1)} s` : age(Math.round(seconds));
  }

  function age(seconds) {
    const s = Math.max(0, Math.floor(seconds));
    if (s < 60) {
      return `${s} s`;
    }
    const two = (number) => String(number).padStart(2, "0");
    if (s < 3600) {
      return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
    }
    if (s < 86400) {
      return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
    }
    return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
  }

  let ahead = 0; // of this machine's clock, in seconds: the ledger's clock counts

  function showAges() {
    const now = Date.now() / 1000 - ahead;
    for (const element of document.querySelectorAll("[data-at]")) {
      const words = age(now - Number(element.dataset.at));
      if (element.textContent !== words) {
        element.textContent = words;
      }
    }
  }

  function show(root) {
    const said = root.querySelector("[data-now]") ?? root.closest("[data-now]");
    if (said) {
      ahead = Date.now() / 1000 - Number(said.dataset.now);
    }
    root.querySelectorAll("time[datetime]").forEach(showTime);
    root.querySelectorAll("[data-scripted]").forEach((element) => element.removeAttribute("hidden"));
    showAges();
  }

  // ---- asking again, every two seconds: cheap while nothing changed, not at all in a hidden tab

  const tags = new Map(); // the ETag of what is shown, by address

  document.addEventListener("htmx:configRequest", ({ detail }) => {
    const tag = detail.elt.dataset.tag ? `"${detail.elt.dataset.tag}"` : tags.get(detail.path);
    if (tag && detail.elt.matches(EVERY)) {
      detail.headers["If-None-Match"] = tag;
    }
  });

  document.addEventListener("htmx:beforeRequest", (event) => {
    const { elt } = event.detail;
    const chosen = elt.querySelector("input:checked"); // a row that moves is clicked wrongly
    if (elt.matches(EVERY) && (document.visibilityState !== "visible" || chosen)) {
      event.preventDefault();
    }
  });

  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible" && window.htmx) {
      document.querySelectorAll(EVERY).forEach((element) => window.htmx.trigger(element, "seen"));
    }
  });

  let answered = new Date();

  document.addEventListener("htmx:afterRequest", ({ detail }) => {
    const { status } = detail.xhr;
    const tag = status === 200 ? detail.xhr.getResponseHeader("ETag") : null;
    if (tag) {
      tags.set(detail.pathInfo.requestPath, tag);
      if (detail.elt.dataset.tag) {
        detail.elt.dataset.tag = tag.replaceAll('"', "");
      }
    }
    const well = status >= 200 && status < 400;
    answered = well ? new Date() : answered;
    const lost = document.getElementById("lost");
    if (lost && lost.hidden !== well) {
      const how = status ? `answers ${status}` : "does not answer";
      lost.textContent = well
        ? ""
        : `The node ${how}. What stands here is as of ${clock.format(answered)}; it is asked again every 2 s.`;
      lost.hidden = well;
    }
  });

  document.addEventListener("htmx:afterSettle", ({ target }) => show(target));

  // ---- lists of jobs

  function count(form) {
    const boxes = [...form.querySelectorAll("input[name='keys']")];
    const chosen = boxes.filter((box) => box.checked).length;
    const every = form.querySelector("[data-every]");
    if (every) {
      every.checked = chosen > 0 && chosen === boxes.length;
      every.indeterminate = chosen > 0 && chosen < boxes.length;
    }
    const said = form.querySelector("[data-chosen]");
    if (said) {
      said.textContent = chosen ? `${chosen} chosen` : "";
    }
  }

  document.addEventListener("change", ({ target }) => {
    const form = target.closest("form");
    if (target.matches("[data-every]")) {
      form.querySelectorAll("input[name='keys']").forEach((box) => { box.checked = target.checked; });
    }
    if (target.matches("[data-every], input[name='keys']")) {
      count(form);
    }
  });

  window.segnode = { duration }; // for plots.js
  show(document.documentElement);
  setInterval(showAges, 1000);
})();
