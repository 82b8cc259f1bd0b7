// Loads GGUF files in node-llama-cpp, as an application would, and generates a few tokens.
//   node load.mjs [--lora ADAPTER.gguf] [--prompt TEXT] [--tokens N] FILE.gguf...
// One JSON line per file:
//   {file, loads, arch, text, tokens: [generated ids], error}
// `loads` means: the model and its context came up and every token was generated; `error` is then
// null, else it carries the last words of llama.cpp's log. Decoding is greedy.
// Exit code 0 if all files load, 1 if any does not, 2 on bad usage.

import {fork} from "node:child_process";
import {once} from "node:events";
import {fileURLToPath} from "node:url";
import {parseArgs} from "node:util";

const usage =
  "usage: node load.mjs [--lora ADAPTER.gguf] [--prompt TEXT] [--tokens N] FILE.gguf...";

async function load({file, lora, prompt, n_tokens}) {
  const result = {file, loads: false, arch: null, text: null, tokens: [], error: null};
  const log = [];
  try {
    const {getLlama, LlamaLogLevel, readGgufFileInfo} = await import("node-llama-cpp");
    result.arch = (await readGgufFileInfo(file)).metadata?.general?.architecture ?? null;
    const llama = await getLlama({
      gpu: false,
      build: "never",
      skipDownload: true,
      progressLogs: false,
      maxThreads: 2,
      logLevel: LlamaLogLevel.warn,
      logger: (level, message) => log.push(`${level}: ${message.trim()}`),
    });
    const model = await llama.loadModel({modelPath: file});
    const input = prompt === "" ? [] : [...model.tokenize(prompt)];
    if (model.tokens.shouldPrependBosToken && model.tokens.bos !== null) {
      input.unshift(model.tokens.bos);
    }
    if (input.length === 0) throw new Error("the prompt has no tokens");
    const context = await model.createContext({
      contextSize: input.length + n_tokens + 8,
      batchSize: input.length + 8,
      lora: lora === undefined ? undefined : {adapters: [{filePath: lora}]},
    });
    const options = {temperature: 0, yieldEogToken: true};  // an end-of-text token does not end it
    for await (const token of context.getSequence().evaluate(input, options)) {
      result.tokens.push(token);
      if (result.tokens.length === n_tokens) break;
    }
    result.text = model.detokenize(result.tokens, true);
    result.loads = result.tokens.length === n_tokens;
    await llama.dispose();
  } catch (error) {
    result.loads = false;
    result.error = [String(error?.message ?? error), ...new Set(log.slice(-4))].join(" | ");
  }
  return result;
}

// One process per file, because llama.cpp aborts where an assertion fails.
async function loadInChild(job) {
  const env = {...process.env, ELASTIFY_LOAD: "1"};
  const child = fork(fileURLToPath(import.meta.url), [], {env});
  let result = null;
  child.on("message", (message) => {
    result = message;
    child.kill();
  });
  child.send(job);
  const [code, signal] = await once(child, "exit");
  return result ?? {
    file: job.file, loads: false, arch: null, text: null, tokens: [],
    error: `llama.cpp ended the process: ${signal ?? `exit code ${code}`}`,
  };
}

async function main() {
  let parsed;
  try {
    parsed = parseArgs({
      allowPositionals: true,
      options: {
        lora: {type: "string"},
        prompt: {type: "string", default: "The capital of France is"},
        tokens: {type: "string", default: "8"},
      },
    });
  } catch (error) {
    console.error(`${error.message}\n${usage}`);
    return 2;
  }
  const {positionals: files, values: {lora, prompt, tokens}} = parsed;
  const n_tokens = Number(tokens);
  if (files.length === 0 || !Number.isInteger(n_tokens) || n_tokens < 1) {
    console.error(usage);
    return 2;
  }
  let code = 0;
  for (const file of files) {
    const result = await loadInChild({file, lora, prompt, n_tokens});
    console.log(JSON.stringify(result));
    if (!result.loads) code = 1;
  }
  return code;
}

if (process.env.ELASTIFY_LOAD === "1" && process.send) {
  process.once("message", async (job) => process.send(await load(job)));
} else {
  process.exitCode = await main();
}
