// The way of a server to hub and gateway, and to nothing else: the proxy's own library with two routes.
// `notebooks up --runtime docker` and deploy/docker run it in a container that joins every server's network.
"use strict";

const home = process.env.NOTEBOOKS_PROXY_HOME;
const { ConfigurableProxy } = require(home + "/node_modules/configurable-http-proxy");

const base = process.env.NOTEBOOKS_BASE_PATH || "/";
const proxy = new ConfigurableProxy({ includePrefix: true, customHeaders: {} });

async function main() {
  await proxy.addRoute(base + "hub/api", { target: process.env.NOTEBOOKS_INSIDE_HUB });
  await proxy.addRoute(base + "services/notebooks/git", { target: process.env.NOTEBOOKS_INSIDE_SERVICE });
  proxy.proxyServer.listen(8000, "0.0.0.0");
}

for (const signal of ["SIGTERM", "SIGINT"]) {
  process.on(signal, () => process.exit(0));
}
main();
