"""The whole of a hostile image: answers in place of Jupyter, with a page that acts as whoever opens it.

Runs inside a container of that image, with its own Python. The page says in its title that it is done, and
what it got in its text.
"""

import http.server
import json

PAGE = """<!doctype html><title>working</title><pre></pre><script>
const asked = JSON.parse(decodeURIComponent(location.hash.slice(1)));
const found = {};
const wait = (promise) => Promise.race([promise, new Promise((_, no) => setTimeout(no, 8000, "late"))]);
async function tried(name, act) {
  try { found[name] = await wait(act()); } catch (error) { found[name] = "refused"; }
}
const read = (url, more) => async () => {
  const answer = await fetch(url, {credentials: "include", ...more});
  return answer.status + " " + (await answer.text()).slice(0, 60);
};
const send = (url, method, type) => read(url, {method, body: "{}", headers: {"content-type": type}});
// What a page may send anywhere without being asked first, and cannot read the answer to.
const blind = (url) => async () => {
  await fetch(url, {method: "POST", mode: "no-cors", credentials: "include", body: "x=1",
                    headers: {"content-type": "application/x-www-form-urlencoded"}});
  return "sent";
};
const frame = (url) => () => new Promise((done) => {
  const it = document.createElement("iframe");
  it.onload = () => { try { done(it.contentDocument ? "inside" : "refused"); } catch { done("refused"); } };
  it.src = url;
  document.body.append(it);
});
const socket = (url) => () => new Promise((done, no) => {
  const it = new WebSocket(url.replace("http", "ws"));
  it.onopen = () => done("open");
  it.onerror = no;
});
(async () => {
  await tried("own", read(location.pathname + "/api"));
  for (const [name, url] of Object.entries(asked.read)) await tried("read " + name, read(url));
  for (const [name, url] of Object.entries(asked.send)) {
    await tried("send " + name, send(url, "POST", "application/json"));
    await tried("delete " + name, send(url, "DELETE", "application/json"));
    await tried("form " + name, send(url, "POST", "application/x-www-form-urlencoded"));
    await tried("blind " + name, blind(url));
  }
  for (const [name, url] of Object.entries(asked.frame)) await tried("frame " + name, frame(url));
  for (const [name, url] of Object.entries(asked.socket)) await tried("socket " + name, socket(url));
  found.cookies = document.cookie;
  document.querySelector("pre").textContent = JSON.stringify(found);
  document.title = "done";
})();
</script>"""


class Hostile(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        api = self.path.rstrip("/").endswith("/api")
        body = json.dumps({"version": "1"}) if api else PAGE
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if api else "text/html")
        self.end_headers()
        self.wfile.write(body.encode())


http.server.ThreadingHTTPServer(("0.0.0.0", 8888), Hostile).serve_forever()
