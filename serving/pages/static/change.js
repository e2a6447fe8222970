// "I changed this": records a change of a listing, once however often it is sent, and shows the page anew.
"use strict";

for (const form of document.querySelectorAll("form[data-change]")) {
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
  const problem = form.querySelector(".problem");
  const button = form.querySelector("button");
  const on = form.elements.on;
  const opened = new Date(); // once: what is sent under a key stays the same
  on.max = on.value = new Date(opened - opened.getTimezoneOffset() * 60000).toISOString().slice(0, 10); // the day here
  form.hidden = false;

  const say = (text) => {
    problem.textContent = text;
    problem.hidden = false;
    button.disabled = false;
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    problem.hidden = true;
    const report = {
      key,
      sku: form.elements.sku.value,
      what: form.elements.what.value,
      // Where it is a new day here and not yet in UTC, midnight of it would be in the future.
      changed_at: on.value > opened.toISOString().slice(0, 10) ? opened.toISOString() : `${on.value}T00:00:00Z`,
    };
    let answer;
    try {
      answer = await fetch(form.action, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(report),
      });
    } catch {
      say(form.dataset.unreachable);
      return;
    }
    if (!answer.ok) {
      const said = await answer.json().catch(() => ({}));
      say(form.dataset.failed.replace("{why}", said.detail || answer.status));
      return;
    }
    const here = new URL(location.href);
    here.searchParams.set("recorded", on.value);
    here.hash = "";
    location.assign(here);
  });
}
