// A stream of sound to the model in the worker of this page, in place of the one to a server.
import { RATE, toPcm } from "./sound.js";

const MOST_WAITING = RATE / 2; // samples that the worker has not yet heard
const worker = new Worker(new URL("./engine.js", import.meta.url), { type: "module" });
const streams = [];

worker.onmessage = ({ data: { id, message, heard } }) => {
  const stream = streams[id];
  if (heard) stream.waiting -= heard;
  else if (!stream.isClosed && stream.handlers[message.type]) stream.handlers[message.type](message);
};
worker.onerror = (event) => streams.forEach(({ handlers }) => handlers.error({ error: event.message || "the model cannot be run" }));

export class Stream {
  constructor(handlers) {
    Object.assign(this, { handlers, waiting: 0, isClosed: false, id: streams.length });
    streams.push(this);
    this.say({ begin: true });
  }

  get isFull() {
    return this.waiting > MOST_WAITING;
  }

  say(message) {
    worker.postMessage({ id: this.id, message });
  }

  send(samples) {
    this.waiting += samples.length;
    const pcm = toPcm(samples);
    worker.postMessage({ id: this.id, samples: pcm }, [pcm.buffer]);
  }

  close() {
    this.isClosed = true;
    this.say({ close: true });
  }
}

if (navigator.serviceWorker) navigator.serviceWorker.register("service.js");
