// "I changed this" and "I did not change this": records a change of a listing, or its withdrawal, once however often it
// is sent, and shows the page anew.
"use strict";

// Sends what `said` gives, under one key for as long as the page is open; `done` is what the new page tells, and the day.
function sends(form, said, done) {
  const key = Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
  const problem = form.querySelector(".problem");
  const button = form.querySelector("button");
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
    let answer;
    try {
      answer = await fetch(form.action, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ key, ...said() }),
      });
    } catch {
      say(form.dataset.unreachable);
      return;
    }
    if (!answer.ok) {
      const refused = await answer.json().catch(() => ({}));
      say(form.dataset.failed.replace("{why}", refused.detail || answer.status));
      return;
    }
    const here = new URL(location.href);
    for (const name of ["recorded", "withdrawn"]) here.searchParams.delete(name);
    here.searchParams.set(...done());
    here.hash = "";
    location.assign(here);
  });
}

for (const form of document.querySelectorAll("form[data-change]")) {
  const on = form.elements.on;
  const opened = new Date(); // once: what is sent under a key stays the same
  on.max = on.value = new Date(opened - opened.getTimezoneOffset() * 60000).toISOString().slice(0, 10); // the day here
  sends(form, () => ({
    sku: form.elements.sku.value,
    what: form.elements.what.value,
    // Where it is a new day here and not yet in UTC, midnight of it would be in the future.
    changed_at: on.value > opened.toISOString().slice(0, 10) ? opened.toISOString() : `${on.value}T00:00:00Z`,
  }), () => ["recorded", on.value]);
}

for (const form of document.querySelectorAll("form[data-undo]")) {
  sends(form, () => ({
    sku: form.elements.sku.value,
    withdraws: form.elements.withdraws.value,
    reason: "not changed",
  }), () => ["withdrawn", form.dataset.undo]);
}
