// Runs on the audio thread: resamples the first channel of the microphone to the model's sample rate.
import { Resampler } from "./sound.js";

class Microphone extends AudioWorkletProcessor {
  constructor(options) {
    super();
    const { rate } = options.processorOptions;
    this.resampler = sampleRate === rate ? null : new Resampler(sampleRate, rate);
    this.piece = Math.round(rate / 20);
    this.waiting = [];
    this.size = 0;
  }

  process(inputs) {
    const channels = inputs[0];
    if (!channels || !channels.length) return true;
    const samples = this.resampler ? this.resampler.process(channels[0]) : channels[0].slice();
    this.waiting.push(samples);
    this.size += samples.length;
    if (this.size >= this.piece) {
      const whole = new Float32Array(this.size);
      let at = 0;
      for (const part of this.waiting) {
        whole.set(part, at);
        at += part.length;
      }
      this.port.postMessage(whole, [whole.buffer]);
      this.waiting = [];
      this.size = 0;
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
