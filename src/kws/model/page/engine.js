// The worker that runs the model: what the WebSocket of the server does (kws.serve.page.socket), in the browser.
import * as ort from "./ort.js";
import { Detector } from "./detector.js";

ort.env.wasm.numThreads = 1; // more need headers that static hosts do not send
ort.env.wasm.wasmPaths = { wasm: new URL("./ort.wasm", import.meta.url).href };
ort.env.logLevel = "error";
const streams = new Map();
let engine, session;

async function load() {
  engine = await (await fetch(new URL("../engine.json", import.meta.url))).json();
  session = await ort.InferenceSession.create(new URL("../model.onnx", import.meta.url).href);
}

async function predict(values) {
  const { num_mels: mels, num_samples: samples } = engine.features;
  const { margin, window_frames: frames } = engine.shape;
  const output = margin ? "tokens" : "probabilities";
  const found = (await session.run({
    waveforms: new ort.Tensor("float32", new Float32Array(0), [0, samples]),
    features: new ort.Tensor("float32", values, [1, mels, frames]),
  }, [output]))[output];
  const size = found.dims[found.dims.length - 1];
  const all = Array.from({ length: found.data.length / size }, (_, i) => found.data.slice(i * size, (i + 1) * size));
  return margin ? all.slice(margin[0], -margin[1]) : all;
}

// Frames as bytes for the picture: 0 is a mel power of 1e-6, 255 one of 1,000.
function picture(frames) {
  const values = frames.flatMap((frame) => [...frame]).map((value) => (engine.features.log ? value / Math.LN10 : Math.log10(value + 1e-6)));
  return btoa(String.fromCharCode(...values.map((value) => Math.min(255, Math.max(0, Math.trunc(((value + 6) * 255) / 9))))));
}

function send(id, { time, probabilities, openSeconds, detection }, frames) {
  const message = { type: "heard", time, probabilities: [...probabilities] };
  if (openSeconds > 0) message.open_seconds = openSeconds;
  if (frames) message.frames = picture(frames);
  postMessage({ id, message });
  if (detection) postMessage({ id, message: { type: "detection", ...detection } });
}

async function handle({ id, samples, message }) {
  if (message?.begin) {
    streams.set(id, new Detector(engine, predict));
    postMessage({ id, message: { type: "hello", ...engine.hello } });
    return;
  }
  const detector = streams.get(id);
  if (!detector) return;
  if (samples) {
    const values = Float32Array.from(samples, (value) => value / 32768);
    for (let first = 0; first < values.length; first += detector.hopSamples) {
      const windows = await detector.feed(values.subarray(first, first + detector.hopSamples));
      const frames = detector.newestFrames;
      windows.forEach((one, i) => send(id, one,
        frames.slice(Math.round((i * frames.length) / windows.length), Math.round(((i + 1) * frames.length) / windows.length))));
    }
    postMessage({ id, heard: samples.length });
  } else if (message.thresholds) {
    detector.setThresholds(message.thresholds);
  } else if (message.finish) {
    for (const one of await detector.finish()) send(id, one);
    const next = new Detector(engine, predict);
    next.setThresholds(detector.thresholds);
    streams.set(id, next);
    postMessage({ id, message: { type: "finished" } });
  } else if (message.close) {
    streams.delete(id);
  }
}

let queue = load(); // one message after the other
onmessage = ({ data }) => {
  queue = queue.then(() => handle(data)).catch((error) => postMessage({ id: data.id, message: { type: "error", error: error.message } }));
};
