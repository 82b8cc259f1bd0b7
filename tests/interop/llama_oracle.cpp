// Reference logits from stock llama.cpp, through the public C API of the prebuilt libraries that
// node-llama-cpp ships. Deliberately shares no code with elastify: it is what elastify is tested
// against. Built by setup.sh.
//
//   llama_oracle MODEL.gguf [--lora F [--scale S]] [--generate N] IDS_FILE OUT.f32
//   llama_oracle MODEL.gguf [--lora F [--scale S]] --nll WINDOW IDS_FILE
//
// IDS_FILE   int32 token ids, little endian, nothing else in the file
// OUT.f32    receives float32 logits [n_tokens, n_vocab], row-major
// --generate greedily continues the sequence by N tokens
// --nll      the ids are sequences of WINDOW tokens, each on its own; the sum over them of -log p of every
//            token given those before it in its sequence, in nats
//
// All positions go through one batch with a float32 KV cache and without flash attention. With
// float32 weights the arithmetic is then float32 throughout; with other weights ggml also rounds
// the activations that meet them (to F16, BF16 or 8 bits). This rounding belongs to stock llama.cpp, not to
// the weights.
// stdout: with --nll "predicted N" and "nll SUM", else "n_tokens T", "n_vocab V" and, with --generate,
// "generated ID ID ...", one per line. stderr: llama.cpp's log. Exit codes: below, or a signal when llama.cpp
// aborts on an assertion.

#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace {

enum ExitCode {
  kDone = 0,
  kUsage = 2,
  kBadIds = 3,      // unreadable, empty, or an id outside of the vocabulary
  kBadModel = 4,    // the model does not load
  kBadAdapter = 5,  // the adapter does not load or does not fit the model
  kBadContext = 6,  // the model loads, but no context can be made for it
  kBadDecode = 7,   // evaluation fails
  kBadOutput = 8,   // OUT.f32 cannot be written
};

constexpr int kThreads = 1;  // more threads would wait for each other on a busy machine

struct Arguments {
  std::string model, lora, ids, out;
  float scale = 1.0f;
  int n_generate = 0, window = 0;
};

[[noreturn]] void fail(ExitCode code, const std::string& message) {
  std::fprintf(stderr, "llama_oracle: %s\n", message.c_str());
  std::exit(code);
}

Arguments parse(int argc, char** argv) {
  Arguments args;
  std::vector<std::string> files;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg.rfind("--", 0) != 0) {
      files.push_back(arg);
      continue;
    }
    if (i + 1 == argc) fail(kUsage, arg + " needs a value");
    const char* value = argv[++i];
    char* end = nullptr;
    if (arg == "--lora") {
      args.lora = value;
      continue;
    }
    if (arg == "--scale") {
      args.scale = std::strtof(value, &end);
    } else if (arg == "--generate") {
      args.n_generate = static_cast<int>(std::strtol(value, &end, 10));
    } else if (arg == "--nll") {
      args.window = static_cast<int>(std::strtol(value, &end, 10));
      if (args.window < 2) fail(kUsage, "--nll: a sequence needs 2 tokens or more");
    } else {
      fail(kUsage, "unknown option " + arg);
    }
    if (end == value || *end != '\0' || args.n_generate < 0) {
      fail(kUsage, arg + ": not a usable number: " + value);
    }
  }
  if (files.size() != (args.window > 0 ? 2 : 3)) {
    fail(kUsage,
         "usage: llama_oracle MODEL.gguf [--lora F [--scale S]] ([--generate N] IDS_FILE OUT.f32 | --nll "
         "WINDOW "
         "IDS_FILE)");
  }
  args.model = files[0];
  args.ids = files[1];
  if (args.window == 0) args.out = files[2];
  return args;
}

std::vector<llama_token> read_ids(const std::string& path) {
  static_assert(sizeof(llama_token) == sizeof(std::int32_t));
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) fail(kBadIds, "cannot read " + path);
  const std::streamoff n_bytes = in.tellg();
  if (n_bytes <= 0 || n_bytes % 4 != 0) fail(kBadIds, path + ": not a list of int32 ids");
  std::vector<llama_token> ids(static_cast<std::size_t>(n_bytes) / 4);
  in.seekg(0);
  if (!in.read(reinterpret_cast<char*>(ids.data()), n_bytes)) {
    fail(kBadIds, "cannot read " + path);
  }
  return ids;
}

// The CPU backends are plug-ins in the directory of libllama, but llama.cpp looks for them only beside the
// executable.
void load_backends() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&llama_backend_init), &info) == 0) {
    fail(kBadModel, "cannot find the folder of libllama");
  }
  const auto folder = std::filesystem::path(info.dli_fname).parent_path();
  ggml_backend_load_all_from_path(folder.c_str());
  llama_backend_init();
}

// Evaluates `ids` at positions first, first+1, ... and asks for the logits of every one of them.
void decode(llama_context* context, const std::vector<llama_token>& ids, llama_pos first) {
  llama_batch batch = llama_batch_init(static_cast<int>(ids.size()), 0, 1);
  batch.n_tokens = static_cast<int>(ids.size());
  for (int i = 0; i < batch.n_tokens; ++i) {
    batch.token[i] = ids[i];
    batch.pos[i] = first + i;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = 1;
  }
  const int status = llama_decode(context, batch);
  llama_batch_free(batch);
  if (status != 0) fail(kBadDecode, "llama_decode returned " + std::to_string(status));
}

llama_token best_token(llama_context* context, int row, int n_vocab) {
  const float* logits = llama_get_logits_ith(context, row);
  if (logits == nullptr) fail(kBadDecode, "no logits at position " + std::to_string(row));
  return static_cast<llama_token>(std::max_element(logits, logits + n_vocab) - logits);
}

void write_logits(llama_context* context, int n_tokens, int n_vocab, const std::string& path) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  for (int i = 0; i < n_tokens; ++i) {
    const float* logits = llama_get_logits_ith(context, i);
    if (logits == nullptr) fail(kBadDecode, "no logits at position " + std::to_string(i));
    out.write(reinterpret_cast<const char*>(logits), static_cast<std::streamsize>(sizeof(float)) * n_vocab);
  }
  out.close();
  if (!out) fail(kBadOutput, "cannot write " + path);
}

/// -log p of `target` under these logits.
double nll(const float* logits, int n_vocab, llama_token target) {
  const double largest = *std::max_element(logits, logits + n_vocab);
  double sum = 0;
  for (int i = 0; i < n_vocab; ++i) sum += std::exp(static_cast<double>(logits[i]) - largest);
  return largest + std::log(sum) - static_cast<double>(logits[target]);
}

void print_nll(llama_context* context, const std::vector<llama_token>& ids, int window, int n_vocab) {
  double sum = 0;
  int predicted = 0;
  for (auto first = ids.begin(); first != ids.end(); first += window) {
    const std::vector<llama_token> sequence(first, first + window);
    llama_memory_clear(llama_get_memory(context), true);
    decode(context, sequence, 0);
    for (int i = 0; i + 1 < window; ++i, ++predicted)
      sum += nll(llama_get_logits_ith(context, i), n_vocab, sequence[static_cast<std::size_t>(i) + 1]);
  }
  std::printf("predicted %d\nnll %.17g\n", predicted, sum);
}

}  // namespace

int main(int argc, char** argv) {
  const Arguments args = parse(argc, argv);
  const std::vector<llama_token> ids = read_ids(args.ids);
  if (args.window > 0 && ids.size() % static_cast<std::size_t>(args.window) != 0)
    fail(kBadIds, args.ids + ": no whole sequences of " + std::to_string(args.window) + " tokens");
  const int n_tokens = args.window > 0 ? args.window : static_cast<int>(ids.size());
  load_backends();

  llama_model_params model_params = llama_model_default_params();
  model_params.n_gpu_layers = 0;
  const std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
      llama_model_load_from_file(args.model.c_str(), model_params), llama_model_free);
  if (!model) fail(kBadModel, "cannot load " + args.model);
  const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
  for (const llama_token id : ids) {
    if (id < 0 || id >= n_vocab) {
      fail(kBadIds, "id " + std::to_string(id) + " is not in [0, " + std::to_string(n_vocab) + ")");
    }
  }

  // Freed with the model.
  llama_adapter_lora* adapter = nullptr;
  if (!args.lora.empty()) {
    adapter = llama_adapter_lora_init(model.get(), args.lora.c_str());
    if (adapter == nullptr) fail(kBadAdapter, "cannot load " + args.lora);
  }

  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(n_tokens + args.n_generate);
  params.n_batch = params.n_ubatch = static_cast<std::uint32_t>(n_tokens);
  params.n_threads = params.n_threads_batch = kThreads;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.type_k = params.type_v = GGML_TYPE_F32;
  const std::unique_ptr<llama_context, decltype(&llama_free)> context(
      llama_init_from_model(model.get(), params), llama_free);
  if (!context) fail(kBadContext, "cannot make a context for " + args.model);
  if (adapter != nullptr) {
    float scale = args.scale;
    if (llama_set_adapters_lora(context.get(), &adapter, 1, &scale) != 0) {
      fail(kBadAdapter, "cannot apply " + args.lora);
    }
  }

  if (args.window > 0) {
    print_nll(context.get(), ids, args.window, n_vocab);
    return kDone;
  }
  decode(context.get(), ids, 0);
  write_logits(context.get(), n_tokens, n_vocab, args.out);
  std::printf("n_tokens %d\nn_vocab %d\n", n_tokens, n_vocab);

  if (args.n_generate > 0) {
    std::printf("generated");
    llama_token next = best_token(context.get(), n_tokens - 1, n_vocab);
    for (int i = 0; i < args.n_generate; ++i) {
      std::printf(" %d", next);
      if (i + 1 == args.n_generate) break;
      decode(context.get(), {next}, n_tokens + i);
      next = best_token(context.get(), 0, n_vocab);
    }
    std::printf("\n");
  }
  return kDone;
}
