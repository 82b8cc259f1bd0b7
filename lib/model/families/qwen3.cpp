#include "model/families/families.h"

namespace elastify {

/// Qwen 3 (dense): RMS norm on every query and key head, no biases.
Family qwen3_family() {
  return {
      .name = "qwen3",
      .hf_architecture = "Qwen3ForCausalLM",
      .gguf_architecture = "qwen3",
      .gguf_rope = RopeOrder::kHalves,
      .config = {.attention_bias_key = true,
                 .always_qk_norm = true,
                 .sliding_window_key = true,
                 .sliding_window_switch = true,
                 .default_max_seq = 32768,
                 .default_head_dim = 128},
      .tensors = join({embedding_rows(), attention_rows(), qkv_bias_rows(), qk_norm_rows(), gated_mlp_rows(),
                       output_rows()}),
  };
}

}  // namespace elastify
