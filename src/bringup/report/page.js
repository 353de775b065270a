// Details are open in print.
"use strict";
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((item) => (item.open = true)));
