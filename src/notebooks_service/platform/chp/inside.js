// The way of a server to hub and gateway, and to nothing else: the proxy's own library with two routes.
// What `allowed_egress` lets out is handed to a process of the host, which knows what may be reached.
// `notebooks up --runtime docker` and deploy/docker run it in a container that joins every server's network.
"use strict";

const net = require("net");

const home = process.env.NOTEBOOKS_PROXY_HOME;
const { ConfigurableProxy } = require(home + "/node_modules/configurable-http-proxy");

const base = process.env.NOTEBOOKS_BASE_PATH || "/";
const proxy = new ConfigurableProxy({ includePrefix: true, customHeaders: {} });

async function main() {
  await proxy.addRoute(base + "hub/api", { target: process.env.NOTEBOOKS_INSIDE_HUB });
  await proxy.addRoute(base + "services/notebooks/git", { target: process.env.NOTEBOOKS_INSIDE_SERVICE });
  proxy.proxyServer.listen(8000, "0.0.0.0");
  if (process.env.NOTEBOOKS_INSIDE_EGRESS) {
    const [host, port] = process.env.NOTEBOOKS_INSIDE_EGRESS.split(":");
    listenForEgress(host, Number(port), Number(process.env.NOTEBOOKS_INSIDE_EGRESS_MOST));
  }
}

// A server's address is in a network that it has for itself, so it tells servers apart.
function listenForEgress(host, port, most) {
  const open = new Map();
  const server = net.createServer({ allowHalfOpen: true }, (from) => {
    const who = from.remoteAddress;
    const count = open.get(who) || 0;
    if (!who || count >= most) {
      from.destroy();
      return;
    }
    open.set(who, count + 1);
    const to = net.connect({ host, port, allowHalfOpen: true });
    for (const [one, other] of [[from, to], [to, from]]) {
      one.on("error", () => other.destroy());
      one.on("close", () => other.destroySoon());
      one.pipe(other);
    }
    from.on("close", () => {
      const left = open.get(who) - 1;
      left > 0 ? open.set(who, left) : open.delete(who);
    });
  });
  server.listen(3128, "0.0.0.0");
}

for (const signal of ["SIGTERM", "SIGINT"]) {
  process.on(signal, () => process.exit(0));
}
main();
