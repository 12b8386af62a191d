// An instance that registers itself, and knows nothing of box-bridge's code: only the environment that
// its Box hands it, and the subjects and the JSON of the wire contract. Plain publishes, no JetStream.
//
//   node instance.mjs PORT
//
// GET / answers at once; GET /hold?N says that N requests are in flight.

import { connect, headers } from "@nats-io/transport-node";
import { createServer } from "node:http";

const env = process.env;
const port = Number(process.argv[2]);
const [id, service] = [env.BOX_INSTANCE_ID, env.BOX_SERVICE];
let inflight = 0;

createServer((request, response) => {
  const url = new URL(request.url, "http://me");
  if (url.pathname === "/hold") inflight = Number(url.search.slice(1));
  response.end(JSON.stringify({ instance: id, pid: process.pid }));
}).listen(port, "127.0.0.1");

const nc = await connect({ servers: env.NATS_URL, name: id });

const registration = JSON.stringify({
  instance_id: id,
  service,
  endpoint: `${env.BOX_ADDRESS}:${port}`,
  metadata: { ...JSON.parse(env.BOX_METADATA ?? "{}"), runtime: "node" },
  started_at: new Date().toISOString(),
});
const lease = headers();
lease.set("Nats-TTL", "30");
const announce = () => nc.publish(`box.register.${service}.${id}`, registration, { headers: lease });
const report = () =>
  nc.publish(
    `box.health.${service}.${id}`,
    JSON.stringify({ inflight_requests: inflight, healthy: true }),
  );

announce();
const timers = [setInterval(announce, 200), setInterval(report, 100)]; // 10 s and 1 s in earnest

process.on("SIGTERM", async () => {
  timers.forEach(clearInterval);
  await nc.drain();
  process.exit(0);
});
