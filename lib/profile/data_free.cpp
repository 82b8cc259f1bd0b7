#include <torch/torch.h>

#include <random>

#include "base/error.h"
#include "base/progress.h"
#include "model/imatrix.h"
#include "nn/host_tensor.h"
#include "nn/torch_error.h"
#include "profile/profile_model.h"
#include "profile/statistics.h"

namespace elastify::profile {
namespace {

using Scores = std::vector<std::vector<float>>;

/// The L2 norm of all weights of a unit, over every tensor that has a part of it.
Scores measure_magnitude(const Checkpoint& checkpoint) {
  const ModelSpec& spec = checkpoint.spec();
  std::vector<at::Tensor> squares;
  for (const auto& space : spec.spaces)
    squares.push_back(at::zeros({space.n_units}, at::TensorOptions().dtype(at::kDouble)));
  Progress progress("magnitude", static_cast<int64_t>(spec.tensors.size()), "tensors");
  for (size_t i = 0; i < spec.tensors.size(); ++i) {
    const TensorSpec& tensor = spec.tensors[i];
    HostTensor host;
    for (size_t axis = 0; axis < tensor.axes.size(); ++axis) {
      const AxisUse& use = tensor.axes[axis];
      if (use.space < 0) continue;
      if (host.bytes.empty()) host = checkpoint.load(i, DType::kF32);
      const int64_t length = host.shape[axis];
      int64_t before = 1;
      for (size_t a = 0; a < axis; ++a) before *= host.shape[a];
      const int64_t after = n_elements(host.shape) / (before * length);
      const auto values = nn::as_tensor(host).view({before, length / use.block, use.block * after});
      squares[static_cast<size_t>(use.space)] +=
          values.square().sum(at::IntArrayRef({0, 2}), false, at::kDouble);
    }
    progress.advance(1);
  }
  Scores scores;
  for (const auto& sums : squares) {
    const at::Tensor norms = sums.sqrt().to(at::kFloat);
    scores.emplace_back(norms.data_ptr<float>(), norms.data_ptr<float>() + norms.numel());
  }
  return scores;
}

/// Draws uniformly from [0, 1). Only the engine's bits are used, because library distributions differ between
/// platforms.
Scores draw_random(const ModelSpec& spec, int64_t seed) {
  std::mt19937_64 engine(static_cast<uint64_t>(seed));
  Scores scores;
  for (const auto& space : spec.spaces) {
    auto& values = scores.emplace_back(static_cast<size_t>(space.n_units));
    for (float& value : values) value = static_cast<float>(engine() >> 40) * 0x1p-24F;
  }
  return scores;
}

}  // namespace

void add_data_free_metric(Profile& profile, const Checkpoint& checkpoint, Metric metric, int64_t seed) {
  switch (metric) {
    case Metric::kMagnitude: {
      const c10::NoGradGuard no_gradients;
      profile.importance[metric] = nn::with_torch_errors([&] { return measure_magnitude(checkpoint); });
      return;
    }
    case Metric::kRandom:
      profile.importance[metric] = draw_random(checkpoint.spec(), seed);
      return;
    default:
      fail("metric '{}' needs calibration data", name_of(metric));
  }
}

void add_imatrix_metric(Profile& profile, const Checkpoint& checkpoint, const fs::path& imatrix) {
  const ModelSpec& spec = checkpoint.spec();
  if (imatrix.empty())
    throw UsageError("metric 'imatrix' needs an importance matrix", "name one with --imatrix FILE");
  const auto squares =
      with_context(imatrix.string(), [&] { return input_mean_squares(open_imatrix(imatrix, spec), spec); });
  std::vector<std::vector<float>> scores;
  for (size_t i = 0; i < spec.spaces.size(); ++i) {
    const AxisSpace& space = spec.spaces[i];
    const Site site = space.kind == SpaceKind::kMlp ? Site::kFfnDown : Site::kAttnOut;
    scores.push_back(wanda_scores(checkpoint, i,
                                  squares[static_cast<size_t>(4 * space.layer) + static_cast<size_t>(site)]));
  }
  profile.importance[Metric::kImatrix] = std::move(scores);
}

}  // namespace elastify::profile
