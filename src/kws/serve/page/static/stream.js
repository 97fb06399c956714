// A stream of sound to the server, over a WebSocket of its own.
import { RATE, toPcm } from "./sound.js";

const MOST_WAITING = RATE; // bytes in transit, half a second

export class Stream {
  // Takes a function for each type of message of the server (hello, heard, detection, finished, error), and `closed`.
  constructor(handlers) {
    const base = location.href.replace(/^http/, "ws").replace(/[?#].*$/, "").replace(/[^/]*$/, "");
    this.socket = new WebSocket(base + "listen");
    this.socket.onopen = () => this.say({ rate: RATE });
    this.socket.onmessage = (event) => {
      const message = JSON.parse(event.data);
      if (handlers[message.type]) handlers[message.type](message);
    };
    this.socket.onclose = handlers.closed;
  }

  // Whether so much sound waits to be sent that more would only be late.
  get isFull() {
    return this.socket.bufferedAmount > MOST_WAITING;
  }

  say(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  send(samples) {
    this.socket.send(toPcm(samples));
  }

  close() {
    this.socket.onclose = null;
    this.socket.close();
  }
}
