// What the theme leaves out for readers with a keyboard or a screen reader.
"use strict";

document.querySelector(".md-search")?.setAttribute("aria-label", "Search");

for (const block of document.querySelectorAll(".md-typeset pre")) block.tabIndex = 0;

const contents = ".md-sidebar--secondary nav nav[aria-label]";
document.querySelectorAll(contents).forEach((list, index) => {
  list.setAttribute("aria-label", `${list.getAttribute("aria-label")} (${index + 1})`);
});

for (const head of document.querySelectorAll(".md-typeset th:empty")) {
  head.append(Object.assign(document.createElement("span"), { className: "unseen", textContent: "name" }));
}
