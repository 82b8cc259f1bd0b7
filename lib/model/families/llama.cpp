#include "model/families/families.h"

namespace elastify {

/// Llama 1, 2, 3.x, TinyLlama, SmolLM, Vicuna and all other models of type LlamaForCausalLM.
Family llama_family() {
  return {
      .name = "llama",
      .hf_architecture = "LlamaForCausalLM",
      .gguf_architecture = "llama",
      .gguf_rope = RopeOrder::kInterleaved,
      .config = {.attention_bias_key = true, .mlp_bias_key = true},
      .tensors = join({embedding_rows(), attention_rows(), qkv_bias_rows(), gated_mlp_rows(), output_rows()}),
  };
}

}  // namespace elastify
