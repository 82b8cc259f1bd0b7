#include "model/families/families.h"

namespace elastify {

/// Qwen 2 and 2.5: biases on q, k and v.
Family qwen2_family() {
  return {
      .name = "qwen2",
      .hf_architecture = "Qwen2ForCausalLM",
      .gguf_architecture = "qwen2",
      .gguf_rope = RopeOrder::kHalves,
      .config = {.always_qkv_bias = true,
                 .sliding_window_key = true,
                 .sliding_window_switch = true,
                 .default_max_seq = 32768},
      .tensors = join({embedding_rows(), attention_rows(), qkv_bias_rows(), gated_mlp_rows(), output_rows()}),
  };
}

}  // namespace elastify
