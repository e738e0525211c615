// The page of `r1v-export serve`: drop an image, ask, watch reasoning and answer appear.
"use strict";

const element = (id) => document.getElementById(id);
const messages = []; // the conversation, as the API takes it
let images = []; // data URLs to show with the next question
let abort = null; // of the answer that is being streamed

const headers = () => {
  const key = element("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
};

const make = (tag, className, text = "") => {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  return node;
};

// --- the server ---

async function connect() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (response.status === 401) {
    element("key-label").hidden = false;
    element("state").textContent = "needs an API key";
    return;
  }
  element("model").textContent = document.title = (await response.json()).data[0].id;
  element("state").textContent = (await fetch("/ready")).ok ? "ready" : "not ready";
}

async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function failure(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

// --- images ---

const readAsDataUrl = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });

async function addFiles(files) {
  for (const file of [...files]) if (file.type.startsWith("image/")) images.push(await readAsDataUrl(file));
  showImages();
}

function showImages() {
  element("images").replaceChildren(
    ...images.map((url, index) => {
      const box = make("span", "thumbnail");
      const image = Object.assign(make("img", ""), { src: url, alt: `image ${index + 1}` });
      const remove = make("button", "", "×");
      remove.type = "button";
      remove.ariaLabel = `Remove image ${index + 1}`;
      remove.onclick = (event) => {
        event.preventDefault();
        images = images.filter((_, other) => other !== index);
        showImages();
      };
      box.append(image, remove);
      return box;
    })
  );
}

// --- a turn ---

function showTurn(question, urls) {
  const turn = make("article", "turn");
  const asked = make("div", "question");
  const shown = make("div", "shown");
  shown.append(...urls.map((url, index) => Object.assign(make("img", ""), { src: url, alt: `image ${index + 1}` })));
  asked.append(shown, question);
  const reasoning = make("div", "reasoning");
  const details = make("details", "");
  details.open = true;
  details.hidden = true;
  details.append(make("summary", "", "Reasoning"), reasoning);
  const answer = make("div", "answer");
  const usage = make("div", "usage");
  turn.append(asked, details, answer, usage);
  element("turns").append(turn);
  return { turn, details, reasoning, answer, usage };
}

async function ask(question) {
  const urls = images;
  const content = [...urls.map((url) => ({ type: "image_url", image_url: { url } })), { type: "text", text: question }];
  const asked = [...messages, { role: "user", content }];
  const view = showTurn(question, urls);
  const temperature = element("temperature").value;
  const body = {
    model: element("model").textContent,
    messages: asked,
    stream: true,
    stream_options: { include_usage: true },
    enable_thinking: element("think").checked,
    ...(temperature === "" ? {} : { temperature: Number(temperature) }),
  };
  abort = new AbortController();
  setBusy(true);
  const start = performance.now();
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: abort.signal,
    });
    if (!response.ok) throw new Error(await failure(response));
    images = [];
    showImages();
    element("question").value = "";
    for await (const event of serverSentEvents(response.body)) show(event, view, start);
    messages.splice(0, Infinity, ...asked, { role: "assistant", content: view.answer.textContent });
  } catch (error) {
    const message = error.name === "AbortError" ? "stopped; this turn is not part of the conversation" : error.message;
    view.turn.append(make("div", "error", message));
  } finally {
    setBusy(false);
  }
}

function show(event, view, start) {
  if (event.error) throw new Error(event.error.message);
  const choice = event.choices[0];
  if (choice) {
    view.reasoning.append(choice.delta.reasoning_content ?? "");
    view.answer.append(choice.delta.content ?? "");
    view.details.hidden = view.reasoning.textContent === "";
    if (choice.finish_reason === "length") view.usage.append("cut off at the limit of tokens · ");
  }
  if (event.usage) {
    const seconds = (performance.now() - start) / 1000;
    const { prompt_tokens: prompt, completion_tokens: completion } = event.usage;
    view.usage.append(`${prompt} tokens in, ${completion} out, ${(completion / seconds).toFixed(1)} tokens/s`);
  }
}

function setBusy(busy) {
  element("send").disabled = busy;
  element("stop").hidden = !busy;
  element("clear").hidden = busy || !element("turns").hasChildNodes();
}

// --- events ---

element("ask").onsubmit = (event) => {
  event.preventDefault();
  if (!element("send").disabled) ask(element("question").value);
};
element("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    element("ask").requestSubmit();
  }
};
element("stop").onclick = () => abort.abort();
element("clear").onclick = () => {
  messages.length = 0;
  element("turns").replaceChildren();
  element("clear").hidden = true;
};
element("file").onchange = (event) => addFiles(event.target.files).then(() => (event.target.value = ""));
element("key").onchange = connect;
document.onpaste = (event) => addFiles(event.clipboardData.files);
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") addFiles(event.dataTransfer.files);
  });
}
connect().catch(() => (element("state").textContent = "the server does not answer"));
