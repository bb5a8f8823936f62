"use strict";

// Asks by the public HTTP interface and nothing else. Text of documents and answers is only ever set as text.
const $ = (id) => document.getElementById(id);
const KEY = "clara-api-key";
let underWay = null; // AbortController of the question that is being answered
let model = null;

function headers() {
  const key = $("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function failure(response) {
  if (response.status === 401) $("key-row").hidden = false;
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

async function meet() {
  const health = await fetch("healthz");
  if (!health.ok) throw new Error(await failure(health));
  const { n_documents, store_version } = await health.json();
  $("served").textContent =
    `Answers from the memories of ${n_documents.toLocaleString()} documents (store version ${store_version}).`;
  const models = await fetch("v1/models", { headers: headers() });
  if (!models.ok) throw new Error(await failure(models));
  model = (await models.json()).data[0].id;
}

// Server-sent events, cut at empty lines wherever the network cuts.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const event = text.slice(0, end);
      text = text.slice(end + 2);
      if (!event.startsWith("data: ")) continue; // a comment, such as a proxy sends to keep the connection
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function ask(question) {
  if (underWay) underWay.abort();
  const mine = (underWay = new AbortController());
  let found = null;
  begin();
  try {
    if (model === null) await meet();
    const topK = $("top-k").valueAsNumber;
    const clara = { explain: true, ...(Number.isNaN(topK) ? {} : { top_k: topK }) };
    const response = await fetch("v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify({ model, messages: [{ role: "user", content: question }], stream: true, clara }),
      signal: mine.signal,
    });
    if (!response.ok) throw new Error(await failure(response));
    sessionStorage.setItem(KEY, $("key").value.trim());
    let ended = false;
    $("result").hidden = false;
    for await (const chunk of events(response.body)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.clara && chunk.clara.sources) {
        found = chunk.clara;
        showSources(found.sources, question, "");
        $("partial").hidden = !found.missing_shards;
        showWords(found.words);
      }
      const choice = chunk.choices[0];
      if (choice && choice.delta.content) $("answer").textContent += choice.delta.content;
      if (choice && choice.finish_reason) {
        ended = true;
        if (chunk.clara) showTimings(chunk.clara.timings, choice.finish_reason);
      }
    }
    if (!ended) throw new Error("The connection ended before the answer did.");
  } catch (error) {
    if (!mine.signal.aborted) showError(error);
    else if (underWay === mine) $("timings").textContent = "stopped";
  } finally {
    if (underWay === mine) {
      underWay = null;
      end();
      if (found) showSources(found.sources, question, $("answer").textContent);
    }
  }
}

function begin() {
  clearError();
  $("result").hidden = true;
  $("answer").textContent = "";
  $("timings").textContent = "";
  $("sources").replaceChildren();
  $("words-part").hidden = true;
  $("answer").setAttribute("aria-busy", "true");
  $("stop").hidden = false;
}

function end() {
  $("answer").setAttribute("aria-busy", "false");
  $("stop").hidden = true;
}

function clearError() {
  $("error").textContent = "";
  $("error").hidden = true;
}

function showError(error) {
  const unreachable = error instanceof TypeError; // what fetch throws where nobody answers
  $("error").textContent = unreachable ? "The server cannot be reached." : error.message;
  $("error").hidden = false;
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const words = (text) => new Set((text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || []).filter((word) => word.length > 2));

// The text with words of the question and of the answer in <mark>.
function marked(text, question, answer) {
  const asked = words(question);
  const answered = words(answer);
  const made = document.createDocumentFragment();
  for (const piece of text.split(/([\p{L}\p{N}]+)/u)) {
    const word = piece.toLowerCase();
    if (answered.has(word)) made.append(element("mark", piece, "answered"));
    else if (asked.has(word)) made.append(element("mark", piece));
    else made.append(piece);
  }
  return made;
}

function showSources(sources, question, answer) {
  $("sources").replaceChildren(
    ...sources.map((source, i) => {
      const item = element("li");
      const head = element("div", undefined, "head");
      head.append(element("strong", `${i + 1}. ${source.title || source.doc_id}`));
      head.append(element("span", `cosine ${source.score.toFixed(3)}`));
      const bar = element("div", undefined, "bar");
      const level = element("span");
      level.style.width = `${100 * Math.max(0, Math.min(1, source.score))}%`;
      bar.append(level);
      const text = element("p");
      text.append(marked(source.text, question, answer));
      item.append(head, bar, text);
      return item;
    }),
  );
}

function showWords(vectors) {
  $("words-part").hidden = !vectors || vectors.length === 0;
  $("words").replaceChildren(
    ...(vectors || []).map((vector) => {
      const line = element("li");
      for (const word of vector) {
        const shown = word.added ? element("mark", word.text, "added") : element("span", word.text);
        const place = element("span", undefined, word.is_word ? "" : "piece");
        place.title = `probability ${word.probability.toFixed(3)}`;
        place.append(shown);
        line.append(place);
      }
      return line;
    }),
  );
}

function showTimings(timings, reason) {
  const ms = (seconds) => `${(1000 * seconds).toFixed(0)} ms`;
  const parts = ["queue", "reason", "retrieve", "generate"].map((part) => `${part} ${ms(timings[part])}`);
  const cut = reason === "length" ? "; cut at the longest answer allowed" : "";
  const first = timings.queue + timings.reason + timings.retrieve + timings.first_token;
  $("timings").textContent = `${parts.join(" · ")}; first token after ${ms(first)}${cut}`;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  if (!question) return;
  history.replaceState(null, "", `?q=${encodeURIComponent(question)}`);
  ask(question);
});
$("stop").addEventListener("click", () => underWay && underWay.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && underWay) underWay.abort();
});
$("key").addEventListener("change", () => {
  model = null;
  clearError();
  meet().catch(showError);
});

$("key").value = sessionStorage.getItem(KEY) || "";
$("key-row").hidden = !$("key").value;
const linked = new URLSearchParams(location.search).get("q");
if (linked) {
  $("question").value = linked;
  ask(linked);
} else {
  meet().catch(showError);
}
