// What was opened on the page of a job stays open when the page is brought up to date.
"use strict";

(() => {
  let open = [];

  document.addEventListener("htmx:beforeSwap", () => {
    open = [...document.querySelectorAll("details[open][id]")].map(({ id }) => id);
  });

  document.addEventListener("htmx:afterSwap", () => {
    for (const id of open) {
      document.getElementById(id)?.setAttribute("open", "");
    }
  });
})();
