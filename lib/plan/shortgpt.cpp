#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "plan/methods.h"

namespace elastify::plan {

std::vector<Widths> solve_shortgpt(const Problem& problem, const Profile& profile) {
  const ModelSpec& spec = problem.spec;
  if (profile.spec_hash != spec_hash(spec))
    throw Error("the profile was measured on another model", "measure one on this model");
  const std::vector<double>& influence = profile.block_influence;
  if (static_cast<int64_t>(influence.size()) != spec.n_layers ||
      std::any_of(influence.begin(), influence.end(), [](double value) { return std::isnan(value); }))
    throw Error("the plan `shortgpt` needs a profile with the influence of every layer",
                "measure one on this model with `elastify profile --second-moments`");
  // Stock llama.cpp needs the attention of the first layer and the MLP of the last one.
  std::vector<int64_t> layers(static_cast<size_t>(std::max<int64_t>(spec.n_layers - 2, 0)));
  std::iota(layers.begin(), layers.end(), 1);
  std::stable_sort(layers.begin(), layers.end(), [&](int64_t a, int64_t b) {
    return influence[static_cast<size_t>(a)] < influence[static_cast<size_t>(b)];
  });

  std::vector<Widths> result(problem.levels.size());
  Widths widths = full_widths(spec);
  auto next = layers.begin();
  for (size_t level = result.size(); level-- > 0;) {
    const int64_t target = problem.targets[level];
    for (; next != layers.end(); ++next) {
      Widths fewer = widths;
      fewer[spec.attention_space(*next)] = fewer[spec.mlp_space(*next)] = 0;
      const int64_t now = std::abs(problem.scale.of(widths) - target);
      if (std::abs(problem.scale.of(fewer) - target) >= now) break;  // no nearer to the target
      widths = std::move(fewer);
    }
    result[level] = widths;
  }
  return result;
}

}  // namespace elastify::plan
