// Questions to the server.

const MOST_TRIES = 6;
const KEY = "davit-key";

export class Refusal extends Error {
  constructor(type, message) {
    super(message);
    this.type = type;
  }
}

// The address of a question: one place for what the page asks and for the curl line it shows.
export function address(verb, model, parameters = {}) {
  return `v1/${verb}?${new URLSearchParams({ model, ...parameters })}`;
}

export class Api {
  #askKey;
  #login = null;

  // `askKey(wrong)` returns a key, or null where the visitor has none.
  constructor(askKey) {
    this.#askKey = askKey;
  }

  // Throws a Refusal. A server that is busy is asked again; `busy(seconds)` says so each time.
  async ask(where, { file = null, signal = null, busy = () => {} } = {}) {
    for (let tries = 1; ; tries++) {
      const key = sessionStorage.getItem(KEY);
      const response = await this.#send(where, file, key, signal);
      if (response.ok) return response.json();
      const refusal = await refusalOf(response);
      if (response.status === 401) {
        if (!(await this.#renew(key))) throw refusal;
      } else if (response.status === 503 && tries < MOST_TRIES) {
        const seconds = Number(response.headers.get("Retry-After")) || 1;
        busy(seconds);
        await pause(seconds, signal);
      } else {
        throw refusal;
      }
    }
  }

  get hasKey() {
    return sessionStorage.getItem(KEY) !== null;
  }

  async #send(where, file, key, signal) {
    const request = { signal, headers: key === null ? {} : { Authorization: `Bearer ${key}` } };
    if (file) {
      request.method = "POST";
      request.body = new FormData();
      request.body.append("file", file, file.name);
    }
    try {
      return await fetch(where, request);
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Refusal("unreachable", "No answer came: is the server still running, and the file still in its place?");
    }
  }

  // Whether there is another key now than the one that was refused; several questions wait for one dialog.
  async #renew(refused) {
    if (sessionStorage.getItem(KEY) !== refused) return true;
    this.#login ??= this.#askKey(refused !== null).finally(() => { this.#login = null; });
    const key = await this.#login;
    if (key !== null) sessionStorage.setItem(KEY, key);
    return key !== null;
  }
}

async function refusalOf(response) {
  const answer = await response.json().catch(() => null);
  const { type, message } = answer?.error ?? {};
  return new Refusal(type ?? `http_${response.status}`, message ?? `The server answered with status ${response.status}.`);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

// A shell reads what stands in single quotes as it is; curl reads a file name in double quotes so, but for \ and ".
export function curlLine(where, name, withKey) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const part = `file=@"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
  const key = withKey ? ' -H "Authorization: Bearer $DAVIT_KEY"' : "";
  return `curl${key} -F ${quoted(part)} ${quoted(new URL(where, location.href).href)}`;
}
