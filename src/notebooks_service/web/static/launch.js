// The launch page: starts what was agreed to before, and shows a launch as it goes.
// Without this script the same page works by its forms and looks again by itself.

const page = document.getElementById("launch");
const { mode, auto, address, events: eventsUrl, csrf } = page.dataset;
const find = (id) => document.getElementById(id);
const LONGEST_LOG = 400_000;
const MOST_REPEATS = 3;
const AWAY = "The hub is restarting, or the network is away; nothing is lost. This page goes on by itself.";
const repeatsKey = `notebooks-repeats ${address}`;

function say(text) {
  const status = find("status");
  if (status && status.textContent !== text) status.textContent = text;
}

/** Our sentences put names between backticks; they become code, and all of it stays text. */
function tell(element, text) {
  element.replaceChildren(
    ...text.split("`").map((part, index) => {
      if (index % 2 === 0) return part;
      const code = document.createElement("code");
      code.textContent = part;
      return code;
    }),
  );
}

function complain(text) {
  const problem = find("problem");
  tell(problem, text);
  problem.hidden = false;
}

/** POST to the launch address; the answer is the same server however often this is asked. */
async function start(form) {
  const answer = await fetch(address, {
    method: "POST",
    headers: { Accept: "application/json", "X-CSRF-Token": csrf },
    body: form ? new URLSearchParams(new FormData(form)) : undefined,
    credentials: "same-origin",
  });
  if (answer.ok) return;
  let error = {};
  try {
    ({ error = {} } = await answer.json());
  } catch {
    // No JSON: a proxy answered instead of us.
  }
  const failure = new Error(error.message || "The service did not answer. Try again in a minute.");
  failure.code = error.code;
  throw failure;
}

/** Start, then show the page of the launch that is under way. */
async function startAndWatch(form) {
  const button = form?.querySelector("button");
  if (button) button.disabled = true;
  try {
    await start(form);
    location.replace(address);
  } catch (failure) {
    if (button) button.disabled = false;
    say("");
    if (failure.code === "not_signed_in" || failure.code === "sign_in_expired") {
      location.replace(address);
      return;
    }
    complain(failure.message);
  }
}

/** After a restart of the hub its waiting is gone: ask again, a few times at most. */
async function repeat() {
  const repeats = Number(sessionStorage.getItem(repeatsKey) || 0);
  if (repeats >= MOST_REPEATS) {
    location.reload();
    return;
  }
  sessionStorage.setItem(repeatsKey, String(repeats + 1));
  try {
    await start();
  } catch {
    // The page that comes says what is wrong.
  }
  location.replace(address);
}

function show({ step, message }) {
  const items = [...find("steps").children];
  const at = items.findIndex((item) => item.dataset.step === step);
  items.forEach((item, index) => {
    const state = index < at ? "done" : index > at ? "waiting" : step === "ready" ? "done" : "current";
    item.dataset.state = state;
    item.querySelector(".step-state").textContent = state;
    if (state === "current") item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
  });
  if (at >= 0) tell(items[at].querySelector(".step-message"), message);
  say(message.replaceAll("`", ""));
}

function showLog({ text, cut }) {
  const details = find("job-log");
  const pre = details.querySelector("pre");
  if (details.hidden) {
    details.hidden = false;
    details.open = true;
  }
  const atEnd = pre.scrollTop + pre.clientHeight >= pre.scrollHeight - 40;
  pre.append((cut ? "…\n" : "") + text);
  if (pre.textContent.length > LONGEST_LOG) pre.textContent = `…\n${pre.textContent.slice(-LONGEST_LOG / 2)}`;
  if (atEnd) pre.scrollTop = pre.scrollHeight;
}

function finish({ outcome }) {
  if (outcome === "interrupted") {
    say("The hub was restarted. Starting again…");
    repeat();
    return;
  }
  sessionStorage.removeItem(repeatsKey);
  if (outcome === "ready") say("Ready. Opening the notebook…");
  location.replace(address);
}

function showHub({ available, message }) {
  const notice = find("hub");
  notice.textContent = message;
  notice.hidden = available;
}

/** Watch until the end; a stream that breaks off is taken up where it was. */
function watch() {
  let last = "";
  let wait = 500;
  const details = find("job-log");
  if (!details.hidden) details.open = true;
  const connect = () => {
    const url = last ? `${eventsUrl}?last_event_id=${encodeURIComponent(last)}` : eventsUrl;
    const source = new EventSource(url);
    const on = (kind, act) =>
      source.addEventListener(kind, (event) => {
        if (event.lastEventId) last = event.lastEventId;
        wait = 500;
        if (kind !== "hub") showHub({ available: true, message: "" });
        act(JSON.parse(event.data));
      });
    on("step", show);
    on("log", showLog);
    on("hub", showHub);
    on("end", (data) => {
      source.close();
      finish(data);
    });
    source.addEventListener("error", () => {
      // The browser repeats by itself only what once was a stream.
      if (source.readyState !== EventSource.CLOSED) return;
      showHub({ available: false, message: AWAY });
      setTimeout(connect, wait);
      wait = Math.min(wait * 2, 10_000);
    });
  };
  connect();
}

find("start")?.addEventListener("submit", (event) => {
  event.preventDefault();
  startAndWatch(event.currentTarget);
});
find("cancel")?.addEventListener("submit", () => {
  say("Cancelling…");
});
window.addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});

if (mode === "pending") watch();
else if (auto === "yes") startAndWatch(find("start"));
