// A gateway that knows nothing of box-bridge's code: only the subjects and the JSON of its wire
// contract. Scales a service, follows its events, reads its registrations, and prints one JSON
// object a line: what it was answered, and what it saw.
//
//   node gateway.mjs NATS_URL SERVICE REPLICAS

import { connect, headers } from "@nats-io/transport-node";

const [url, service, wanted] = process.argv.slice(2);
const replicas = Number(wanted);
const say = (kind, value) => console.log(JSON.stringify({ kind, ...value }));

const nc = await connect({ servers: url, name: "a gateway in JavaScript" });

const states = new Map();
const registered = new Set();
let settle;
const settled = new Promise((resolve) => (settle = resolve));
const look = () => {
  const serving = [...states].filter(([, state]) => state === "Ready" || state === "Busy");
  const alive = [...states].filter(([, state]) => state !== "Stopped" && state !== "Failed");
  if (serving.length === replicas && alive.length === replicas && registered.size === replicas) {
    settle();
  }
};

nc.subscribe(`box.events.${service}`, {
  callback: (err, msg) => {
    if (err) throw err;
    const event = msg.json();
    states.set(event.instance_id, event.to_state);
    say("event", { seq: Number(msg.headers.get("Box-Seq")), event });
    look();
  },
});
nc.subscribe(`box.register.${service}.*`, {
  callback: (err, msg) => {
    if (err) throw err;
    registered.add(msg.json().instance_id);
    look();
  },
});
nc.subscribe(`box.deregister.${service}.*`, {
  callback: (err, msg) => {
    if (err) throw err;
    registered.delete(msg.json().instance_id);
    look();
  },
});
await nc.flush();

const ask = async (body, expires) => {
  const h = headers();
  h.set("Box-Expires-At", new Date(Date.now() + expires).toISOString());
  const reply = await nc.request("box.scale", JSON.stringify(body), { timeout: 5000, headers: h });
  return reply.json();
};

// What was there before this gateway came.
const before = await nc.request("box.instances", JSON.stringify({ service }), { timeout: 5000 });
for (const info of before.json().instances) {
  states.set(info.id, info.state);
  registered.add(info.id);
}

say("refused", { answer: await ask({ service: "no-such-service", replicas: 1 }, 5000) });
say("expired", { answer: await ask({ service, replicas }, -1000) });
const request_id = `js-${Date.now()}`;
say("answer", { answer: await ask({ service, replicas, request_id }, 5000) });
say("again", { answer: await ask({ service, replicas, request_id }, 5000) });

const timer = setTimeout(() => {
  say("late", { states: Object.fromEntries(states) });
  process.exit(1);
}, 20000);
await settled;
clearTimeout(timer);

const after = await nc.request("box.instances", JSON.stringify({ service }), { timeout: 5000 });
say("instances", { answer: after.json() });
for (const info of after.json().instances.filter((i) => i.state === "Ready")) {
  const page = await fetch(`http://${info.endpoint}/`);
  say("page", { id: info.id, status: page.status });
}
await nc.drain();
