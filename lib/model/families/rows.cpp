#include "model/families/families.h"

namespace elastify {

std::vector<TensorRow> embedding_rows() {
  return {{Role::kTokenEmbedding, "model.embed_tokens.weight", "token_embd.weight", Extent::kVocab,
           Extent::kModel}};
}

std::vector<TensorRow> attention_rows() {
  return {
      {Role::kAttnNorm, "model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", Extent::kModel},
      {Role::kQuery, "model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", Extent::kQueryHeads,
       Extent::kModel},
      {Role::kKey, "model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", Extent::kKeyValueHeads,
       Extent::kModel},
      {Role::kValue, "model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight",
       Extent::kKeyValueHeads, Extent::kModel},
      {Role::kAttnOut, "model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", Extent::kModel,
       Extent::kQueryHeads},
  };
}

std::vector<TensorRow> qkv_bias_rows() {
  const auto when = Present::kQkvBias;
  return {
      {Role::kQueryBias, "model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias", Extent::kQueryHeads,
       Extent::kNone, when},
      {Role::kKeyBias, "model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias", Extent::kKeyValueHeads,
       Extent::kNone, when},
      {Role::kValueBias, "model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias",
       Extent::kKeyValueHeads, Extent::kNone, when},
      {Role::kAttnOutBias, "model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias", Extent::kModel,
       Extent::kNone, Present::kAttnOutBias},
  };
}

std::vector<TensorRow> qk_norm_rows() {
  const auto when = Present::kQkNorm;
  return {
      {Role::kQueryNorm, "model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight",
       Extent::kHeadDim, Extent::kNone, when},
      {Role::kKeyNorm, "model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight",
       Extent::kHeadDim, Extent::kNone, when},
  };
}

std::vector<TensorRow> gated_mlp_rows() {
  const auto when = Present::kMlpBias;
  return {
      {Role::kFfnNorm, "model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight",
       Extent::kModel},
      {Role::kGate, "model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", Extent::kFeedForward,
       Extent::kModel},
      {Role::kUp, "model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", Extent::kFeedForward,
       Extent::kModel},
      {Role::kDown, "model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", Extent::kModel,
       Extent::kFeedForward},
      {Role::kGateBias, "model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias", Extent::kFeedForward,
       Extent::kNone, when},
      {Role::kUpBias, "model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias", Extent::kFeedForward,
       Extent::kNone, when},
      {Role::kDownBias, "model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias", Extent::kModel,
       Extent::kNone, when},
  };
}

std::vector<TensorRow> output_rows() {
  return {
      {Role::kOutputNorm, "model.norm.weight", "output_norm.weight", Extent::kModel},
      {Role::kOutput, "lm_head.weight", "output.weight", Extent::kVocab, Extent::kModel, Present::kUntied},
  };
}

std::vector<TensorRow> join(std::initializer_list<std::vector<TensorRow>> parts) {
  std::vector<TensorRow> all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace elastify
