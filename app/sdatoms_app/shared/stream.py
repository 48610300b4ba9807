"""A page that misses no answer: what runs in it beside Gradio's own client."""

from __future__ import annotations

__all__ = ["WAIT_FOR_STREAM"]

WAIT_FOR_STREAM = """<script>
(() => {
  const ask = window.fetch.bind(window);
  let stream = null;

  // Notes which events a stream has spoken of, and when it is over.
  const follow = async (answer, state) => {
    try {
      const lines = answer.clone().body.pipeThrough(new TextDecoderStream()).getReader();
      for (let rest = "";;) {
        const {value, done} = await lines.read();
        if (done) break;
        const whole = (rest + value).split("\\n");
        rest = whole.pop();
        for (const line of whole)
          for (const [, id] of line.matchAll(/"event_id":"(\\w+)"/g)) state.said.add(id);
        state.tell();
      }
    } catch {}
    setTimeout(state.end);  // the client has read the last line by then
  };

  const openStream = async (request, init) => {
    const state = {said: new Set(), over: false, waiting: new Set()};
    state.tell = () => state.waiting.forEach(look => look());
    state.end = () => { state.over = true; state.tell(); };
    stream = state;
    (request.signal || init?.signal)?.addEventListener("abort", state.end);
    try {
      const answer = await ask(request, init);
      follow(answer, state);
      return answer;
    } catch (error) {
      state.end();
      throw error;
    }
  };

  const join = async (request, init) => {
    const answer = await ask(request, init), state = stream;
    if (!answer.ok || !state) return answer;
    const {event_id} = await answer.clone().json();
    await new Promise(resolve => {
      const look = () => {
        if (!state.over && !state.said.has(event_id)) return;
        state.waiting.delete(look);
        resolve();
      };
      state.waiting.add(look);
      look();
    });
    return answer;
  };

  window.fetch = (request, init) => {
    const path = new URL(request.url || request, location.href).pathname;
    if (path.endsWith("/queue/data")) return openStream(request, init);
    if (path.endsWith("/queue/join")) return join(request, init);
    return ask(request, init);
  };
})();
</script>"""
"""For the page's head. Gradio's client hears of all its events on one stream, which the server ends
when none is left; an event that is asked for just then is told of nowhere: the client sees that
its stream is still open, and reads afterwards that it was ended. Here the answer to the question
waits until the stream has spoken of the event, or is over, so that the client opens another."""
