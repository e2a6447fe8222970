// Keeps the packing station's page and its files, so that it opens without a network. It never answers anything else.
"use strict";

const KEPT = "doorstep-station";

async function fresh(request) {
  const answer = await fetch(request);
  if (answer.ok) await (await caches.open(KEPT)).put(request, answer.clone());
  return answer;
}

async function keep() {
  const page = self.registration.scope;
  const text = await (await fresh(page)).text();
  const files = [...text.matchAll(/(?:href|src)="([^"]*static\/[^"]+)"/g)].map((found) => new URL(found[1], page).href);
  await Promise.all(files.map(fresh));
}

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(keep());
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  const path = new URL(request.url).pathname;
  const ours = request.method === "GET" && (path.endsWith("/pack") || path.includes("/static/"));
  if (ours) event.respondWith(fresh(request).catch(() => caches.match(request).then((kept) => kept || Response.error())));
});
