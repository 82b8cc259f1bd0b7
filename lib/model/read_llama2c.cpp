#include "base/error.h"
#include "io/llama2c.h"
#include "model/checkpoint.h"
#include "model/rope_order.h"

namespace elastify {
namespace {

/// The name under which the file groups a tensor, without the layer.
const char* group_of(Role role) {
  switch (role) {
    case Role::kTokenEmbedding:
      return "tok_embeddings";
    case Role::kAttnNorm:
      return "attention_norm";
    case Role::kQuery:
      return "wq";
    case Role::kKey:
      return "wk";
    case Role::kValue:
      return "wv";
    case Role::kAttnOut:
      return "wo";
    case Role::kFfnNorm:
      return "ffn_norm";
    case Role::kGate:
      return "w1";
    case Role::kDown:
      return "w2";
    case Role::kUp:
      return "w3";
    case Role::kOutputNorm:
      return "norm";
    case Role::kOutput:
      return "output";
    default:
      fail("llama2.c files have no such tensor");
  }
}

ModelSpec spec_of(const Llama2cHeader& header) {
  if (header.n_heads < 1 || header.n_kv_heads < 1 || header.n_heads % header.n_kv_heads != 0)
    fail("{} heads cannot share {} kv heads equally", header.n_heads, header.n_kv_heads);
  if (header.d_model % header.n_heads != 0)
    fail("the width {} is not a multiple of {} heads", header.d_model, header.n_heads);
  if (header.n_layers < 1 || header.n_layers > 1024)
    fail("expected 1 to 1024 layers, got {}", header.n_layers);
  ModelSpec spec;
  spec.family = "llama";
  spec.n_layers = header.n_layers;
  spec.d_model = header.d_model;
  spec.n_vocab = header.n_vocab;
  spec.max_seq = header.max_seq;
  spec.head_dim = header.d_model / header.n_heads;
  spec.layer_kv_heads.assign(static_cast<size_t>(header.n_layers), header.n_kv_heads);
  spec.layer_d_ff.assign(static_cast<size_t>(header.n_layers), header.d_ff);
  spec.norm_eps = 1e-5;  // run.c always uses this value
  spec.layers.assign(static_cast<size_t>(header.n_layers),
                     {.heads_per_group = header.n_heads / header.n_kv_heads, .rope_theta = 10000});
  spec.tied = header.tied;
  complete_spec(spec);
  return spec;
}

}  // namespace

Checkpoint open_llama2c(const fs::path& path) {
  auto file = std::make_shared<const Llama2cFile>(Llama2cFile::open(path));
  return with_context(path.string(), [&] {
    ModelSpec spec = spec_of(file->header());
    struct Source {
      std::string name;
      bool rotary;
    };
    std::vector<Source> sources;
    for (const TensorSpec& tensor : spec.tensors) {
      std::string name = group_of(tensor.role);
      if (tensor.layer >= 0) name += fmt::format(".{}", tensor.layer);
      sources.push_back({std::move(name), tensor.role == Role::kQuery || tensor.role == Role::kKey});
    }
    std::vector<DType> dtypes(spec.tensors.size(), DType::kF32);
    const auto load = [file, sources, head_dim = spec.head_dim](size_t index) {
      HostTensor tensor = file->tensor(sources.at(index).name);
      if (!sources[index].rotary) return tensor;
      return reorder_rope_rows(tensor, head_dim, RopeOrder::kInterleaved, RopeOrder::kHalves);
    };
    return Checkpoint(path, SourceFormat::kLlama2c, std::move(spec), std::move(dtypes), {path}, {}, load,
                      [file] { file->release_pages(); });
  });
}

}  // namespace elastify
