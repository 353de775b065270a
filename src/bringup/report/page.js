// Sections fold. Details are open in print, and where a link leads.
"use strict";
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((item) => (item.open = true)));

const sections = [...document.querySelectorAll("main > h2[id]:not(#findings, #advice)")].map((heading) => {
  const [section, summary] = [document.createElement("details"), document.createElement("summary")];
  section.className = "section";
  section.open = true;
  heading.before(section);
  summary.append(heading);
  section.append(summary);
  while (section.nextSibling && section.nextSibling.nodeName !== "H2") section.append(section.nextSibling);
  return section;
});
const links = document.querySelector("nav");
if (links && sections.length) {
  const fold = document.createElement("button");
  fold.textContent = "fold all";
  fold.addEventListener("click", () => {
    const open = !sections.some((section) => section.open);
    for (const section of sections) section.open = open;
    fold.textContent = open ? "fold all" : "unfold all";
  });
  links.append(fold);
  links.addEventListener("click", ({ target }) => {
    const section = target instanceof HTMLAnchorElement && document.querySelector(target.hash)?.closest("details");
    if (section) section.open = true;
  });
}
