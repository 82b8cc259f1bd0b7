#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/file.h"
#include "model/permutation.h"
#include "model/profile.h"
#include "model/spec.h"

// The importance matrix of llama.cpp: for each weight matrix, the mean square of each input column on
// calibration text. `llama-imatrix` measures it, `llama-quantize --imatrix` weighs rounding errors by it.
//
// The GGUF form has general.type = "imatrix", imatrix.datasets string[], imatrix.chunk_count u32 and
// imatrix.chunk_size u32. Each matrix, in the order of the names, has two f32 tensors (shapes outermost
// first):
//
//   <name>.in_sum2  [n_matrices, n_in]   sum over tokens of x_j^2
//   <name>.counts   [n_matrices, 1]      tokens; n_matrices is 1 but for mixtures of experts
//
// The older form, without a magic:
//
//   i32 n_entries | n_entries x { i32 length | name | i32 n_calls | i32 n_in | f32 values[n_in] }
//   | i32 chunk_count | i32 length | dataset          (both may be missing)
//
// Its values are mean squares times n_calls, so that values / n_calls means the same as in_sum2 / counts.
// Source: llama.cpp, tools/imatrix, common/imatrix-loader

namespace elastify {

/// The entry of one weight matrix. The mean square of column j is sum_squares[j] / count.
struct ImatrixEntry {
  std::vector<float> sum_squares;  ///< [n_in]
  double count = 0;                ///< tokens (in the older form: chunks)
};

struct Imatrix {
  std::map<std::string, ImatrixEntry> entries;  ///< by the tensor's name in GGUF: "blk.0.attn_q.weight"
  std::vector<std::string> datasets;
  int64_t chunk_count = 0;
  int64_t chunk_size = 0;  ///< tokens; 0: not stated
  /// Digest of the permutation that moved the columns; empty: columns are in the source model's order.
  std::string permutation_digest;
};

/// Loads either form.
/// \throws Error  naming the file, the place in it, what was expected and what was found; also for mixtures of
///   experts
Imatrix load_imatrix(const fs::path& path);
/// Writes the GGUF form, which llama-quantize reads. The same content gives the same bytes.
/// \returns the file's SHA-256
std::string save_imatrix(const Imatrix& imatrix, const fs::path& path);

/// \throws Error  naming the first tensor that this model does not have, or has with another number of
/// columns (both are stated)
void check(const Imatrix& imatrix, const ModelSpec& spec);

/// The site whose activations this tensor multiplies; none for tensors that are not matrices inside a layer.
std::optional<Site> site_of(Role role);

/// Makes an importance matrix from a profile's input means.
/// \throws Error  if the profile holds none
Imatrix imatrix_of(const Profile& profile, const ModelSpec& spec);
/// Opens an importance matrix or a profile with input means, whichever the file is, measured on this model in
/// its own order.
/// \throws Error  naming the file, tensor and sizes if it was measured on another model
Imatrix open_imatrix(const fs::path& path, const ModelSpec& spec);

/// Mean squares of the inputs, in the order of Profile::inputs: [4 * layer + site][n_in]. Tensors that share
/// an input (q, k, v; gate, up) need only one entry among them.
/// \throws Error  naming the tensors of a site that has no entry
std::vector<std::vector<double>> input_mean_squares(const Imatrix& imatrix, const ModelSpec& spec);

/// The importance matrix of the model whose units `permutation` moved: the columns of o and down move along.
/// \throws Error  if the columns were moved before
Imatrix reordered(const Imatrix& imatrix, const ModelSpec& spec, const Permutation& permutation);
/// The importance matrix of the sub-model with these widths: the leading columns of the kept matrices.
Imatrix narrowed(const Imatrix& imatrix, const ModelSpec& spec, const Widths& widths);

}  // namespace elastify
