/** The model beside the page, in a worker. */

/**
 * A worker: {ready: a promise of the model's header, ask: (message, transfer) -> a promise of the answer}. A helper has
 * the model of faces alone, and no detector.
 *
 * It is started from a blob, since only such a worker inherits this page's Content-Security-Policy.
 */
export function startWorker({ helper = false } = {}) {
  const start = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
  const url = URL.createObjectURL(new Blob([start], { type: "text/javascript" }));
  const worker = new Worker(url, { type: "module", name: helper ? "helper" : "reader" });
  const waiting = new Map();
  let last = 0;
  const ready = new Promise((resolve, reject) => {
    worker.onerror = () => {
      const error = new Error("this browser cannot run the model");
      reject(error);
      for (const { wrong } of waiting.values()) wrong(error);
    };
    worker.onmessage = ({ data }) => {
      if (data.ready) resolve(data.ready);
      else if (data.failed) reject(new Error(data.failed));
      else {
        const { fine, wrong } = waiting.get(data.id);
        waiting.delete(data.id);
        if (data.error) wrong(new Error(data.error));
        else fine(data);
      }
    };
  });
  const ask = (message, transfer = []) =>
    new Promise((fine, wrong) => {
      waiting.set(++last, { fine, wrong });
      worker.postMessage({ id: last, ...message }, transfer);
    });
  return { ready, ask };
}
