// Loads one GGUF file in a runtime for node, reads a prompt and generates, and prints what that took.
//   node --input-type=module --eval SCRIPT -- JOB
// JOB is JSON: {runtime: "node-llama-cpp" | "llama.node", package: its folder, file, adapter (or null),
// n_vocab, n_prompt, n_generate, threads (0: the runtime's choice), repetitions}. The last line of stdout is JSON:
// {prompt_tokens_per_second, generation_tokens_per_second}. Errors are the last line of stderr, status 1.
// Part of the program: CMake puts it into `elastify` as a text, so that there is no file to find or to mismatch.

import {readFileSync, writeSync} from "node:fs";
import {join} from "node:path";
import {pathToFileURL} from "node:url";

const job = JSON.parse(process.argv.at(-1));
process.execArgv.length = 0;  // node-llama-cpp forks: not with --eval and this script again

// Not import(name): the package may lie anywhere, and NODE_PATH does not hold for modules.
async function load_package() {
  const {exports, main} = JSON.parse(readFileSync(join(job.package, "package.json")));
  let entry = exports?.["."] ?? exports ?? main ?? "index.js";
  while (typeof entry === "object") entry = entry.node ?? entry.import ?? entry.default;
  const loaded = await import(pathToFileURL(join(job.package, entry)));
  return loaded.default?.loadModel === undefined ? loaded : loaded.default;
}

// Ids are spread over the vocabulary; which ones does not matter to the time.
const prompt = Array.from({length: job.n_prompt}, (_, i) => (i * 7919 + 13) % job.n_vocab);
const n_context = job.n_prompt + job.n_generate + 8;

const runtimes = {
  async "node-llama-cpp"({getLlama, LlamaLogLevel}) {
    const llama = await getLlama({
      gpu: false,
      build: "never",
      skipDownload: true,
      progressLogs: false,
      ...(job.threads > 0 ? {maxThreads: job.threads} : {}),
      logLevel: LlamaLogLevel.warn,
      logger: (level, message) => console.error(`${level}: ${message.trim()}`),
    });
    const model = await llama.loadModel({modelPath: job.file});
    const context = await model.createContext({
      contextSize: n_context,
      batchSize: n_context,
      ...(job.adapter === null ? {} : {lora: {adapters: [{filePath: job.adapter}]}}),
    });
    const sequence = context.getSequence();
    const seconds = {prompt: 0, generation: 0};
    for (let repetition = -1; repetition < job.repetitions; ++repetition) {  // -1: to warm up
      await sequence.clearHistory();
      const start = performance.now();
      let first = null, n = 0;
      for await (const _ of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
        first ??= performance.now();
        if (n++ === job.n_generate) break;  // the first one comes out of the prompt
      }
      if (n <= job.n_generate) throw new Error(`generated ${n} tokens of ${job.n_generate + 1}`);
      if (repetition < 0) continue;
      seconds.prompt += (first - start) / 1e3;
      seconds.generation += (performance.now() - first) / 1e3;
    }
    return {
      prompt_tokens_per_second: (job.repetitions * job.n_prompt) / seconds.prompt,
      generation_tokens_per_second: (job.repetitions * job.n_generate) / seconds.generation,
    };
  },

  async "llama.node"({loadModel}) {
    const context = await loadModel({
      model: job.file,
      n_ctx: n_context,
      n_batch: n_context,
      n_parallel: 1,
      n_gpu_layers: 0,
      use_mmap: true,
      ...(job.threads > 0 ? {n_threads: job.threads} : {}),
    });
    if (job.adapter !== null) context.applyLoraAdapters([{path: job.adapter, scaled: 1}]);
    await context.bench(job.n_prompt, job.n_generate, 1, 1);  // to warm up
    const {speedPp, speedTg} = await context.bench(job.n_prompt, job.n_generate, 1, job.repetitions);
    return {prompt_tokens_per_second: speedPp, generation_tokens_per_second: speedTg};
  },
};

try {
  const speeds = await runtimes[job.runtime](await load_package());
  writeSync(1, `\n${JSON.stringify(speeds)}\n`);
  process.exit(0);  // threads of a runtime may still run
} catch (error) {
  writeSync(2, `\nerror: ${String(error?.message ?? error).replaceAll("\n", " ")}\n`);
  process.exit(1);
}
