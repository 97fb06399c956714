// The twin of kws.model.detector: words in a stream of samples. All numbers of `engine.json` come from there.

// Computes mel spectra of windows, each Float32Array [num_mels].
class Mel {
  constructor({ features, filters }) {
    Object.assign(this, features);
    this.filters = filters; // for each mel: its first bin, and the weights from there on
    const angles = Float64Array.from({ length: this.n_fft }, (_, i) => (2 * Math.PI * i) / this.n_fft);
    this.cosines = angles.map(Math.cos);
    this.sines = angles.map(Math.sin);
    this.window = Float64Array.from({ length: this.win_length }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / this.win_length));
    this.half = this.win_length / 2;
    this.even = new Float64Array(this.half);
    this.odd = new Float64Array(this.half);
    this.power = new Float64Array(this.n_fft / 2 + 1);
  }

  frame(samples, first) {
    const { half, even, odd, window, n_fft: size } = this;
    const middle = first + half;
    for (let i = 0; i < half; i++) { // about the middle of a window cosines are even and sines odd
      const [after, before] = [samples[middle + i], i ? samples[middle - i] : 0];
      even[i] = (after + before) * window[half + i];
      odd[i] = (after - before) * window[half + i];
    }
    for (let bin = 0; bin <= size / 2; bin++) {
      let [real, imaginary, place] = [0, 0, 0];
      for (let i = 0; i < half; i++) {
        real += even[i] * this.cosines[place];
        imaginary += odd[i] * this.sines[place];
        place += bin;
        if (place >= size) place -= size;
      }
      this.power[bin] = real * real + imaginary * imaginary;
    }
    return Float32Array.from(this.filters, ([start, weights]) => {
      let sum = 0;
      for (let i = 0; i < weights.length; i++) sum += weights[i] * this.power[start + i];
      return this.log ? Math.log(sum + this.log_offset) : sum;
    });
  }
}

// Turns smoothed probabilities into detections, window by window.
class Decider {
  constructor(words, { after, after_seconds: afterSeconds, refractory_seconds: refractory }, limits) {
    Object.assign(this, limits, { words, refractory, afterSeconds });
    this.targets = words.flatMap((word, index) => (word.startsWith("_") ? [] : [index]));
    const each = (value) => this.targets.map(() => value);
    this.armed = each(true);
    this.lastAbove = each(-Infinity);
    this.quietUntil = each(-Infinity);
    this.gate = after ? this.targets.findIndex((index) => words[index] === after) : null;
    this.openUntil = -Infinity;
    this.best = null; // score, which target, and time of a rising word
    this.risingSince = 0;
  }

  setThresholds(thresholds) {
    this.thresholds = this.targets.map((index) => Math.fround(thresholds[this.words[index]]));
  }

  step(time, probabilities) {
    const scores = this.targets.map((index) => probabilities[index]);
    const above = scores.map((score, i) => score >= this.thresholds[i]);
    let [which, score] = [0, -1];
    scores.forEach((one, i) => {
      const quiet = time < this.quietUntil[i];
      if (time - this.lastAbove[i] > this.rearm_seconds + 1e-6) this.armed[i] = true;
      const admitted = this.gate === null || i === this.gate || time <= this.openUntil + 1e-6;
      if (above[i] && this.armed[i] && !quiet && admitted && one > score) [which, score] = [i, one];
      if (above[i]) this.lastAbove[i] = time;
      if (above[i] && quiet) this.armed[i] = false;
    });
    const rising = score >= 0 && (!this.best || score > this.best.score);
    if (rising) {
      if (!this.best) this.risingSince = time;
      this.best = { score, which, time };
    }
    return rising && time - this.risingSince < this.longest_rise - 1e-6 ? null : this.finish(above);
  }

  finish(above = []) {
    if (!this.best) return null;
    const { score, which, time } = this.best;
    this.best = null;
    const quiet = time + Math.min(this.other_word_seconds, this.refractory);
    this.quietUntil = this.quietUntil.map((until) => Math.max(until, quiet));
    this.quietUntil[which] = time + this.refractory;
    if (which === this.gate) this.openUntil = time + this.afterSeconds;
    this.armed[which] = false;
    above.forEach((one, i) => { if (one) this.armed[i] = false; });
    return { score, index: this.targets[which], time };
  }
}

const round = (value, digits) => Number(value.toFixed(digits));

export class Detector {
  // `predict` maps features [num_mels × window_frames] to the probabilities of the newest windows, a Float32Array each.
  constructor(engine, predict) {
    Object.assign(this, engine.shape, { engine, predict });
    this.rate = engine.features.sample_rate;
    this.hop = engine.features.hop_length;
    this.mel = new Mel(engine);
    this.decider = new Decider(engine.hello.words, engine.thresholds, engine.limits);
    this.setThresholds(engine.thresholds.thresholds);
    const silence = new Float32Array(engine.features.num_mels).fill(engine.features.log ? Math.log(engine.features.log_offset) : 0);
    this.frames = Array(this.kept_frames).fill(silence);
    this.pending = new Float32Array(this.silent_samples);
    this.numFrames = 0;
    this.recent = []; // the probabilities of the windows that are averaged
  }

  setThresholds(thresholds) {
    this.thresholds = thresholds;
    this.decider.setThresholds(thresholds);
  }

  get hopSamples() {
    return this.hop_frames * this.hop;
  }

  get seconds() {
    return ((this.numFrames - 1) * this.hop) / this.rate;
  }

  get newestFrames() {
    return this.frames.slice(-this.hop_frames);
  }

  // Takes samples in -1 to 1, and returns what it heard in each new window.
  async feed(samples) {
    const all = new Float32Array(this.pending.length + samples.length);
    all.set(this.pending);
    all.set(samples, this.pending.length);
    const found = [];
    let first = 0;
    for (; all.length - first >= this.hopSamples - this.hop + this.mel.win_length; first += this.hopSamples) {
      for (let i = 0; i < this.hop_frames; i++) this.frames.push(this.mel.frame(all, first + i * this.hop));
      this.frames.splice(0, this.hop_frames);
      this.numFrames += this.hop_frames;
      const results = await this.predict(this.window());
      results.forEach((probabilities, number) => {
        const time = this.seconds - (results.length - 1 - number) * this.hop_seconds;
        if (time < this.lag - (this.num_windows - 1) * this.hop_seconds) return;
        this.recent = [...this.recent, probabilities].slice(-this.num_windows);
        if (this.recent.length === this.num_windows) found.push(this.decide(time));
      });
    }
    this.pending = all.slice(first);
    return found;
  }

  // Ends the stream with silence, so that its last word is heard, too.
  async finish() {
    const found = await this.feed(new Float32Array(Math.trunc((this.lag + this.hop_seconds) * this.rate)));
    const last = this.decider.finish();
    if (last && found.length) found[found.length - 1].detection = this.describe(last);
    return found;
  }

  window() {
    const frames = this.frames.slice(-this.window_frames);
    const values = new Float32Array(frames.length * this.mel.num_mels);
    frames.forEach((frame, t) => frame.forEach((value, mel) => { values[mel * frames.length + t] = value; }));
    return values;
  }

  decide(time) {
    const probabilities = this.recent[0].map((_, i) =>
      Math.fround(this.recent.reduce((sum, one) => Math.fround(sum + one[i]), 0) / this.num_windows));
    const detected = this.decider.step(time - this.lag, probabilities);
    const openSeconds = Math.max(0, this.decider.openUntil - time);
    return { time, probabilities, openSeconds, detection: detected && this.describe(detected) };
  }

  describe({ score, index, time }) {
    const [begin, end] = this.extent(time);
    return { time: round(time, 3), word: this.engine.hello.words[index], probability: round(score, 4), begin, end };
  }

  // Estimates where a word begins and ends: the frames around the loudest one that stand out from the rest.
  extent(time) {
    const perSecond = this.rate / this.hop;
    const middle = this.frames.length - 1 - Math.round((this.seconds - time) * perSecond);
    const reach = Math.floor(this.mel.num_frames / 2);
    const first = Math.max(0, middle - reach);
    const loudness = this.frames.slice(first, Math.min(this.frames.length, middle + reach))
      .map((frame) => frame.reduce((sum, value) => sum + value, 0) / frame.length);
    const sorted = [...loudness].sort((a, b) => a - b);
    const place = 0.1 * (sorted.length - 1);
    const low = Math.floor(place);
    const floor = sorted[low] + (place - low) * (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]);
    const top = loudness.indexOf(Math.max(...loudness));
    const loud = loudness.map((value) => value > floor + 0.35 * (loudness[top] - floor));
    const pause = Math.round(0.12 * perSecond);
    const edges = [top, top];
    for (const [side, step] of [[0, -1], [1, 1]]) {
      for (let at = top; at >= 0 && at < loud.length && Math.abs(at - edges[side]) <= pause; at += step) {
        if (loud[at]) edges[side] = at;
      }
    }
    const start = this.seconds - (this.frames.length - 1 - first) / perSecond;
    return [round(Math.max(0, start + edges[0] / perSecond), 3), round(start + (edges[1] + 1) / perSecond, 3)];
  }
}
