#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/spec.h"

namespace elastify::exporter {

/// The type of a file's matrices: one type for all, or one of llama.cpp's mixtures, which spend more bits
/// where errors cost most. Vectors are always f32.
///
/// A mixture stores in q6_K: the output matrix (the embedding if it is tied), and attn_v and ffn_down of
/// the first eighth of the layers, of the last eighth, and of every third layer between; all else in its base
/// type. Source: llama.cpp's description of Q4_K_M and Q5_K_M (pull request 1684)
class WeightType {
 public:
  WeightType(DType dtype);  // NOLINT: a type for all is a weight type

  std::string_view name() const { return name_; }    ///< "q8_0", "q4_k_m"
  uint32_t file_type() const { return file_type_; }  ///< general.file_type: enum llama_ftype
  bool is_mixture() const { return base_ != more_; }
  bool is_float() const { return elastify::is_float(base_); }
  bool uses_importance() const { return elastify::uses_importance(base_); }
  /// \param fused_qkv  q, k and v of some file are one tensor, so that v has the type of q and k
  DType of(const TensorSpec& tensor, const ModelSpec& model, bool fused_qkv) const;

  friend bool operator==(const WeightType& a, const WeightType& b) { return a.name_ == b.name_; }

 private:
  WeightType(std::string_view name, DType base, DType more, uint32_t file_type)
      : name_(name), base_(base), more_(more), file_type_(file_type) {}
  friend const std::vector<WeightType>& all_weight_types();

  std::string_view name_;
  DType base_, more_;
  uint32_t file_type_;
};

const std::vector<WeightType>& all_weight_types();
/// \throws UsageError  for an unknown name; lists the known ones
WeightType weight_type_named(std::string_view name);
/// Reads one or several names: "q8_0,q4_k_m".
/// \throws UsageError  for unknown and repeated names
std::vector<WeightType> weight_types_named(std::string_view names);
std::string to_text(const std::vector<WeightType>& types);  ///< the inverse

}  // namespace elastify::exporter
