// What every page shares. Pages work without it wherever they can.
"use strict";

// Times of the server, in the reader's own zone: <time datetime="...Z" data-local>.
for (const time of document.querySelectorAll("time[data-local]")) {
  const moment = new Date(time.dateTime);
  if (!Number.isNaN(moment.getTime())) time.textContent = moment.toLocaleString(document.documentElement.lang);
}

// Buttons that print the page: <button data-print hidden>.
for (const button of document.querySelectorAll("button[data-print]")) {
  button.hidden = false;
  button.addEventListener("click", () => window.print());
}
