// Judgments that the server has not acknowledged yet. They survive a reload, a crash and a lost connection; sending one
// twice does no harm, because the server knows them by client_key.
//
// One storage item per judgment, so that two tabs never overwrite each other's; the name holds the person, so that
// nobody sends what somebody else judged on the same computer.

export class Outbox {
  #prefix;
  #memory = new Map(); // also holds them where storage is switched off or full

  constructor(person) {
    this.#prefix = `judgment:${person}:`;
    for (const name of storedNames()) if (name.startsWith(this.#prefix)) this.#load(name);
  }

  #load(name) {
    try {
      const judgment = JSON.parse(localStorage.getItem(name));
      if (judgment?.body?.client_key) this.#memory.set(judgment.body.client_key, judgment);
    } catch {
      localStorage.removeItem(name); // not ours
    }
  }

  /** `body` is what is posted; `lease` what is needed to show the pair again. */
  add(body, lease) {
    this.#keep({ at: Date.now(), body, lease });
  }

  #keep({ lease, ...stored }) {
    const key = stored.body.client_key;
    this.#memory.set(key, { ...stored, lease });
    try {
      localStorage.setItem(this.#prefix + key, JSON.stringify(stored));
    } catch {
      // storage is switched off or full: kept as long as the page is open
    }
  }

  /** It is on its way: from now on the server may have it, whether or not an answer comes. */
  noteTried(key) {
    const judgment = this.#memory.get(key);
    if (judgment) this.#keep({ ...judgment, isTried: true });
  }

  /** The judgment shall not count. One that may have reached the server leaves an undo in its place, sent in its turn. */
  takeBack(key) {
    const judgment = this.#memory.get(key);
    if (judgment?.isTried) this.#keep({ at: judgment.at, body: { client_key: key }, isUndo: true });
    else this.remove(key);
  }

  remove(key) {
    this.#memory.delete(key);
    try {
      localStorage.removeItem(this.#prefix + key);
    } catch {
      // it was never stored
    }
  }

  /** The judgment that waits, or undefined. */
  get(key) {
    const judgment = this.#memory.get(key);
    return judgment?.isUndo ? undefined : judgment;
  }

  /** The oldest one, or undefined. */
  first() {
    return [...this.#memory.values()].sort((a, b) => a.at - b.at)[0];
  }

  hasLease(id) {
    return [...this.#memory.values()].some((judgment) => judgment.body.lease === id);
  }

  get size() {
    return this.#memory.size;
  }
}

function storedNames() {
  try {
    return Object.keys(localStorage);
  } catch {
    return [];
  }
}

/** A random UUID. crypto.randomUUID exists only on https and localhost; a first trial over plain http in an office must work too. */
export function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}
