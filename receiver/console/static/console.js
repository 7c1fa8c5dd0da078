"use strict";
// Every few seconds, region by region, makes the page what its address shows now. Nodes that stay the same are left
// alone, so focus, selection, what was typed and open details survive; an element with an id is followed by its id.
const sync = (old, fresh) => {
  if (old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
  if (old.nodeType !== Node.ELEMENT_NODE) return old.nodeValue === fresh.nodeValue || (old.nodeValue = fresh.nodeValue);
  for (const { name } of [...old.attributes]) if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes)
    if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  const ids = new Set([...fresh.children].map((each) => each.id));
  for (const each of [...old.children]) if (each.id && !ids.has(each.id)) each.remove();
  const known = new Map([...old.children].map((each) => [each.id, each]));
  let place = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const same = child.id ? known.get(child.id) : place?.id ? null : place;
    while (same && child.id && place !== same && place && !place.id) [place] = [place.nextSibling, place.remove()];
    if (same === place && same) place = place.nextSibling;
    else old.insertBefore(same ?? child, place);
    if (same) sync(same, child);
  }
  while (place) [place] = [place.nextSibling, place.remove()];
};
const refresh = async () => {
  let response;
  const request = new AbortController();
  setTimeout(() => request.abort(), 15000); // longer than the receiver may take for a page
  try {
    response = await fetch(location.href, { headers: { "X-Refresh": "1" }, signal: request.signal });
    if (response.ok) {
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      for (const region of document.querySelectorAll("[data-refresh]")) sync(region, page.getElementById(region.id));
      document.dispatchEvent(new Event("refreshed"));
    }
  } catch { response = null; } // it is away: the next time
  document.getElementById("stale").hidden = Boolean(response?.ok);
  if (response?.status !== 401) later(); // the password has changed: only a person can enter the new one
};
const later = () => setTimeout(() => (document.hidden ? document.addEventListener("visibilitychange", refresh, { once: true }) : refresh()), 1000 * document.querySelector("[data-refresh]").dataset.refresh);
if (document.querySelector("[data-refresh]")) later();
