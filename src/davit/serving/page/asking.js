// One answer per picture and address, asked for when it is first wanted, a few at a time, and kept.

const MOST_AT_ONCE = 4; // the server makes batches of them

export class Asking {
  #api;
  #changed;
  #waiting = [];
  #running = 0;

  // `changed(item)` is called whenever an entry of a picture has changed.
  constructor(api, changed) {
    this.#api = api;
    this.#changed = changed;
  }

  // {state: "waiting" | "asked" | "done" | "failed", words, answer, error, milliseconds}
  entry(item, where, first = false) {
    let entry = item.entries.get(where);
    if (!entry) {
      entry = { state: "waiting", words: "Waiting for its turn" };
      item.entries.set(where, entry);
      this.#waiting[first ? "unshift" : "push"]({ item, where, entry });
      this.#start();
    }
    return entry;
  }

  again(item, where) {
    item.entries.delete(where);
    return this.entry(item, where, true);
  }

  #start() {
    while (this.#running < MOST_AT_ONCE && this.#waiting.length) {
      this.#running++;
      this.#answer(this.#waiting.shift()).finally(() => { this.#running--; this.#start(); });
    }
  }

  async #answer({ item, where, entry }) {
    const { signal } = item.stop, begun = performance.now();
    if (signal.aborted) return;
    this.#set(item, entry, { state: "asked", words: "Waiting for the answer" });
    const busy = (seconds) => {
      this.#set(item, entry, { words: `The server is busy; the next try comes in ${seconds} s` });
    };
    try {
      const answer = await this.#api.ask(where, { file: item.file, signal, busy });
      const error = answer.results?.[0].error;
      const milliseconds = performance.now() - begun;
      this.#set(item, entry, error ? { state: "failed", answer, error } : { state: "done", answer, milliseconds });
    } catch (error) {
      if (!signal.aborted) this.#set(item, entry, { state: "failed", error });
    }
  }

  #set(item, entry, change) {
    Object.assign(entry, change);
    this.#changed(item);
  }
}
