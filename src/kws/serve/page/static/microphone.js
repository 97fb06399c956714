// The microphone, as samples at the model's rate, and why there is none.
import { RATE } from "./sound.js";

const PATIENCE = 5000; // milliseconds until the first sound

const REASONS = {
  NotAllowedError: "Access to the microphone was denied. Allow it for this page (the icon left of the address), and start again.",
  SecurityError: "The browser's settings deny access to the microphone. Allow it for this page, and start again.",
  NotFoundError: "There is no microphone. Connect one, and start again.",
  NotReadableError: "The microphone is in use by another program or by the system. Close that program, and start again.",
  AbortError: "The microphone could not be started. Try again.",
  TimeoutError: "The browser gave no sound for five seconds. Some browsers need loudspeakers or headphones to use a " +
    "microphone: connect some, and start again.",
};

export function whyNone(error) {
  return REASONS[error.name] || `The microphone cannot be used: ${error.message || error.name}.`;
}

export const isAllowedHere = () => Boolean(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);

export class Microphone {
  // Opens the microphone and waits for its first sound; `take` gets all samples, `ended` is called if it is unplugged.
  static async open(processing, take, ended) {
    const microphone = new Microphone();
    try {
      await microphone.start(processing, take, ended);
    } catch (error) {
      microphone.close();
      throw error;
    }
    return microphone;
  }

  async start(processing, take, ended) {
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: {
      channelCount: 1, echoCancellation: processing, noiseSuppression: processing, autoGainControl: processing,
    } });
    this.stream.getTracks()[0].onended = () => this.stream && ended();
    // The context keeps the device's sample rate, as some browsers refuse others; the worklet resamples.
    this.context = new AudioContext();
    // Not resume() is waited for but sound: where there are no loudspeakers, Firefox never settles that promise.
    await new Promise((resolve, reject) => {
      setTimeout(() => reject(new DOMException("", "TimeoutError")), PATIENCE);
      this.connect((samples) => {
        resolve();
        this.lastSound = performance.now();
        if (this.stream) take(samples);
      }).catch(reject);
    });
  }

  async connect(take) {
    const { context } = this;
    context.resume();
    await context.audioWorklet.addModule("page/worklet.js");
    const node = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0, processorOptions: { rate: RATE } });
    node.port.onmessage = (event) => take(event.data);
    context.createMediaStreamSource(this.stream).connect(node);
  }

  // Whether sound has stopped to come, as in a tab that was suspended or after sleep; tries to go on.
  get isPaused() {
    if (performance.now() - this.lastSound < 1500) return false;
    if (this.context.state === "suspended") this.context.resume();
    return true;
  }

  close() {
    if (this.stream) for (const track of this.stream.getTracks()) track.stop();
    this.stream = null;
    if (this.context && this.context.state !== "closed") this.context.close();
  }
}
