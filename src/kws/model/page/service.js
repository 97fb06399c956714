// Keeps all files of the page, so that it works without a network once it was loaded, and answers for the server.
const CACHE = "kws-@DIGEST@";
const FILES = ["./", "@FILES@"];
const there = (path) => new URL(path, registration.scope).pathname;

addEventListener("install", (event) => event.waitUntil(
  caches.open(CACHE).then((cache) => cache.addAll(FILES)).then(() => skipWaiting())));

addEventListener("activate", (event) => event.waitUntil(caches.keys().then((names) => Promise.all(
  names.filter((name) => name.startsWith("kws-") && name !== CACHE).map((name) => caches.delete(name)))).then(() => clients.claim())));

addEventListener("fetch", (event) => {
  const { pathname } = new URL(event.request.url);
  if (pathname === there("decode")) {
    event.respondWith(Response.json({ error: "this browser cannot decode it" }, { status: 415 }));
  } else if (pathname.startsWith(there("collection"))) {
    event.respondWith(Response.json({ error: "recordings are kept only by a server" }, { status: 404 }));
  } else if (event.request.method === "GET") {
    event.respondWith(caches.match(event.request, { ignoreSearch: true }).then((found) => found || fetch(event.request)));
  }
});
