// Loads many GGUF files in one process of a runtime, one after the other, and generates with each.
//   node load_many.mjs node-llama-cpp|llama.node LIST.json [PROMPT]
// LIST.json: [{file, lora: path or null, n_vocab}]. Without a PROMPT, which takes a vocabulary, the prompt is
// token ids (llama.node: those of its own bench).
// One JSON line per file: {file, lora, loads, error}
// Exit code 0 if all files load, 1 if any does not.

import {readFileSync} from "node:fs";

const [runtime, list, prompt] = process.argv.slice(2);
const n_generate = 4;

async function nodeLlamaCpp() {
  const {getLlama, LlamaLogLevel} = await import("node-llama-cpp");
  const llama = await getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    progressLogs: false,
    maxThreads: 1,
    logLevel: LlamaLogLevel.error,
  });
  return async ({file, lora, n_vocab}) => {
    const model = await llama.loadModel({modelPath: file});
    const context = await model.createContext({
      contextSize: 64,
      batchSize: 32,
      lora: lora === null ? undefined : {adapters: [{filePath: lora}]},
    });
    const ids = prompt === undefined ? Array.from({length: 16}, (_, i) => (i * 7919 + 13) % n_vocab)
                                     : [...model.tokenize(prompt)];
    let n = 0;
    for await (const _ of context.getSequence().evaluate(ids, {temperature: 0, yieldEogToken: true}))
      if (++n === n_generate) break;
    await model.dispose();
    if (n !== n_generate) throw new Error(`generated ${n} tokens of ${n_generate}`);
  };
}

async function llamaNode() {
  const {loadModel} = (await import("@fugood/llama.node")).default;
  return async ({file, lora}) => {
    const context = await loadModel({model: file, n_ctx: 64, n_parallel: 1, n_gpu_layers: 0, n_threads: 1});
    if (lora !== null) context.applyLoraAdapters([{path: lora, scaled: 1}]);
    if (prompt === undefined) {
      const {speedTg} = await context.bench(16, n_generate, 1, 1);
      if (!(speedTg > 0)) throw new Error(`generates ${speedTg} tokens/s`);
    } else {
      const {text} = await context.completion({prompt, n_predict: n_generate, temperature: 0, ignore_eos: true});
      if (text.length === 0) throw new Error("no text generated");
    }
    await context.release();
  };
}

const load = await (runtime === "llama.node" ? llamaNode() : nodeLlamaCpp());
let code = 0;
for (const job of JSON.parse(readFileSync(list))) {
  let error = null;
  try {
    await load(job);
  } catch (thrown) {
    error = String(thrown?.message ?? thrown);
    code = 1;
  }
  console.log(JSON.stringify({file: job.file, lora: job.lora, loads: error === null, error}));
}
process.exit(code);
