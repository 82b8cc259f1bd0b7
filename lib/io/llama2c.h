#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "io/tensor.h"

namespace elastify {

/// Header of a llama2.c checkpoint.
struct Llama2cHeader {
  int version = 0;  ///< 0: float32, no magic; 2: "ak42", int8 in groups
  int64_t d_model = 0, d_ff = 0, n_layers = 0, n_heads = 0, n_kv_heads = 0, n_vocab = 0, max_seq = 0;
  bool tied = true;
  int64_t group_size = 0;  ///< elements per float scale (version 2)
};

/// A llama2.c .bin file. Version 0: 7 int32, then float32 tensors, kind by kind over all layers. Version 2:
/// 256-byte header ("ak42"), float32 norms, then int8 tensors each followed by its float32 group scales.
/// Tensors are addressed as the file groups them: "wq.3" is layer 3 of wq; Q and K rows are in Meta's
/// (interleaved) order.
/// Source: https://github.com/karpathy/llama2.c, export.py (legacy_export, version2_export), run.c
class Llama2cFile {
 public:
  /// \throws Error naming the file, the field, the size expected and the size found
  static Llama2cFile open(const fs::path& path);
  /// True if the file starts with version 2's magic, or has exactly the size that its first 28 bytes ask for.
  static bool matches(const fs::path& path);

  const Llama2cHeader& header() const { return header_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }  ///< dtype after decoding: f32
  /// float32; a view into the map for version 0, decoded for version 2.
  HostTensor tensor(std::string_view name) const;

  void release_pages() const { file_->release(file_->bytes()); }  ///< see MappedFile

 private:
  void parse();

  struct Place {
    uint64_t offset = 0;        ///< of the float32 or int8 values
    uint64_t scale_offset = 0;  ///< of the group scales (version 2 matrices)
    bool quantised = false;
  };
  std::shared_ptr<const MappedFile> file_;
  Llama2cHeader header_;
  std::vector<TensorInfo> tensors_;
  std::vector<Place> places_;
  std::map<std::string, size_t, std::less<>> index_;
};

}  // namespace elastify
