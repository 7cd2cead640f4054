// Two windows of one person share their pairs. Each tells the others what it holds and what was judged, so that nothing is
// judged twice, and nothing is let go of that another window still shows.
import { config } from "./page.js";

const channel = globalThis.BroadcastChannel ? new BroadcastChannel(`label:${config.person}`) : null;
const me = Math.random().toString(36).slice(2);
const held = new Map(); // window → leases

let judgedElsewhere = () => {};
export const onJudgedElsewhere = (callback) => { judgedElsewhere = callback; };
export const isHeldElsewhere = (lease) => [...held.values()].some((leases) => leases.includes(lease));
export const tellJudged = (lease) => channel?.postMessage({ from: me, judged: lease });
export const tellHeld = (leases) => channel?.postMessage({ from: me, held: leases });

channel?.addEventListener("message", ({ data }) => {
  if (data.held) held.set(data.from, data.held);
  if (data.judged) judgedElsewhere(data.judged);
});
