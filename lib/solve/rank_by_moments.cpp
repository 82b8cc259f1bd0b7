#include "solve/rank_by_moments.h"

#include <torch/torch.h>

#include "base/error.h"
#include "base/progress.h"
#include "nn/device.h"
#include "nn/host_tensor.h"
#include "nn/torch_error.h"
#include "solve/prefix_fit.h"

namespace elastify::solve {

namespace {

/// \param sums  [n, n]; only the lower triangle is read
at::Tensor symmetric(std::vector<double> sums, int64_t n, c10::Device device) {
  at::Tensor whole = at::from_blob(sums.data(), {n, n}, at::kDouble).to(device, false, true).tril_();
  return whole.add_(whole.tril(-1).t());
}

/// Second moments, the number of tokens in their sums, and the ridge that is added to them.
struct Moments {
  const MomentSource& source;
  int64_t n_tokens;
  double ridge;
};

/// Calls visit(s, projection) for every space that has units.
template <typename Visit>
void for_each_projection(const Checkpoint& checkpoint, const Moments& moments, const std::string& device,
                         const std::string& label, const Visit& visit) {
  const c10::NoGradGuard no_gradients;
  const c10::Device solver = nn::device_named(device);
  const ModelSpec& spec = checkpoint.spec();
  Progress progress(label, static_cast<int64_t>(spec.spaces.size()), "spaces");
  for (size_t s = 0; s < spec.spaces.size(); ++s) {
    const AxisSpace& space = spec.spaces[s];
    with_context(space.name, [&] {
      nn::with_torch_errors([&] {
        const Role role = space.kind == SpaceKind::kMlp ? Role::kDown : Role::kAttnOut;
        const auto index = static_cast<size_t>(spec.find(role, space.layer));
        Projection projection;
        projection.weight = nn::as_tensor(checkpoint.load(index, DType::kF32)).to(solver, at::kDouble);
        const int64_t n = projection.weight.size(1);
        projection.moments =
            regularised(symmetric(moments.source(s), n, solver).div_(static_cast<double>(moments.n_tokens)),
                        moments.ridge);
        projection.block = n / space.n_units;
        visit(s, projection);
      });
    });
    progress.advance(1);
  }
}

std::vector<int64_t> order_by(Metric metric, const Projection& projection) {
  switch (metric) {
    case Metric::kObs:
      return obs_order(projection);
    case Metric::kForward:
      return forward_order(projection);
    case Metric::kHybrid:
      return hybrid_order(projection);
    case Metric::kGram:
      return gram_order(projection);
    default:
      fail("metric '{}' is not worked out of second moments", name_of(metric));
  }
}

}  // namespace

Permutation rank_by_moments(const Checkpoint& checkpoint, const MomentSource& moments, int64_t n_tokens,
                            Metric metric, double ridge, const std::string& device) {
  Permutation permutation = identity_permutation(checkpoint.spec());
  permutation.metric = name_of(metric);
  // `gram` solves nothing. A ridge would only overrate inputs that are hardly ever used.
  for_each_projection(
      checkpoint, {moments, n_tokens, metric == Metric::kGram ? 0 : ridge}, device,
      fmt::format("order by {}", name_of(metric)),
      [&](size_t s, const Projection& projection) { permutation.orders[s] = order_by(metric, projection); });
  return permutation;
}

std::vector<PrefixErrors> prefix_errors(const Checkpoint& checkpoint, const MomentSource& moments,
                                        int64_t n_tokens, const Permutation& permutation, double ridge,
                                        const std::string& device) {
  std::vector<PrefixErrors> errors(checkpoint.spec().spaces.size());
  for_each_projection(checkpoint, {moments, n_tokens, ridge}, device, "errors of widths",
                      [&](size_t s, const Projection& projection) {
                        const PrefixFit fit(projection, permutation.orders[s]);
                        errors[s] = {fit.errors_unfitted(), fit.errors()};
                      });
  return errors;
}

}  // namespace elastify::solve
