#include "model/families/families.h"

namespace elastify {

/// Mistral 7B and its relatives: llama with an optional sliding window. Their GGUF files state the
/// architecture llama.
Family mistral_family() {
  return {
      .name = "mistral",
      .hf_architecture = "MistralForCausalLM",
      .gguf_architecture = "llama",
      .gguf_rope = RopeOrder::kInterleaved,
      .config = {.sliding_window_key = true, .default_max_seq = 131072, .default_sliding_window = 4096},
      .tensors = join({embedding_rows(), attention_rows(), gated_mlp_rows(), output_rows()}),
  };
}

}  // namespace elastify
