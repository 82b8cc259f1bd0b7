#pragma once

#include <torch/torch.h>

#include <map>
#include <string>
#include <vector>

#include "support/decoders.h"
#include "support/reference_decoder.h"

namespace elastify::test {

/// A tensor that a loss depends on, and the gradient by it that lib/nn computed.
struct FoundGradient {
  std::string name;
  at::Tensor tensor, gradient;
};

/// The repairs' tensors with the gradients that a backward pass computed.
inline std::vector<FoundGradient> gradients_of_repairs(const nn::LayerRepair& repairs,
                                                       const nn::LayerRepair& found) {
  std::vector<FoundGradient> all;
  for (const auto& [role, repair] : repairs) {
    const auto place = found.find(role);
    const nn::TensorRepair gradients = place == found.end() ? nn::TensorRepair{} : place->second;
    const auto add = [&](const char* part, const at::Tensor& tensor, const at::Tensor& gradient) {
      if (tensor.defined()) all.push_back({std::string(name_of(role)) + " " + part, tensor, gradient});
    };
    add("weight", repair.weight, gradients.weight);
    add("a", repair.a, gradients.a);
    add("b", repair.b, gradients.b);
    add("bias", repair.bias, gradients.bias);
  }
  return all;
}

/// Compares the forward and backward pass of lib/nn through one half of the last layer with the reference:
/// the output, and the gradients of sum(output * random) by the input, the units' masks, the frozen weights
/// and the repairs' tensors. The last ones are also compared with differences of lib/nn's own outputs.
class HalfCheck {
 public:
  HalfCheck(const Checkpoint& checkpoint, nn::Half half)
      : decoder_(checkpoint, {}), reference_(checkpoint), half_(half) {}

  void run(const Widths* widths, nn::LevelRepair* repairs, int64_t n_tokens = 13) const {
    const ModelSpec& spec = decoder_.spec();
    const int64_t layer = spec.n_layers - 1;
    torch::manual_seed(7);
    const at::Tensor x = torch::randn({2, n_tokens, spec.d_model});
    const at::Tensor weights_of_loss = torch::randn(x.sizes());
    nn::ForwardOptions options;
    options.widths = widths;
    options.repairs = repairs;
    options.half = half_;
    const nn::LayerTrace trace = decoder_.trace(layer, x, options);
    CHECK(at::equal(trace.output, decoder_.layer(layer, x, options)));

    const at::Tensor input = x.to(at::kDouble).requires_grad_();
    const auto masks = unit_masks(widths != nullptr ? *widths : full_widths(spec), 2, true);
    const ReferenceDecoder::Options same{
        .widths = widths, .repairs = repairs, .unit_masks = &masks, .half = half_};
    const at::Tensor expected = reference_.layer(layer, input, same);
    CHECK(relative_difference(trace.output, expected) < 1e-5);
    const at::Tensor loss = (expected * weights_of_loss).sum();
    const auto reference_gradient = [&](const at::Tensor& by) {
      return torch::autograd::grad({loss}, {by}, {}, true, false, true)[0];
    };

    std::map<Role, at::Tensor> frozen;
    const nn::LayerGradients found =
        decoder_.backward(layer, trace, weights_of_loss, options,
                          [&](Role role, const at::Tensor& gradient) { frozen[role] = gradient.clone(); });
    CHECK(relative_difference(found.input, reference_gradient(input)) < 1e-4);
    const bool attention = half_ == nn::Half::kAttention;
    const size_t space = attention ? spec.attention_space(layer) : spec.mlp_space(layer);
    const at::Tensor& by_column = attention ? found.attention_masks : found.mlp_masks;
    const at::Tensor by_unit = by_column.view({2, masks[space].size(1), -1}).sum(2);
    CHECK(relative_difference(by_unit, reference_gradient(masks[space])) < 1e-4);
    check_frozen(frozen, layer, widths, repairs, reference_gradient);
    if (repairs != nullptr)
      check_own(found.repairs, repairs->layers[static_cast<size_t>(layer)], reference_gradient, [&] {
        return (decoder_.layer(layer, x, options).to(at::kDouble) * weights_of_loss).sum().item<double>();
      });
  }

 private:
  bool is_of_half(Role role) const {
    const bool mlp = role == Role::kGate || role == Role::kUp || role == Role::kDown ||
                     role == Role::kGateBias || role == Role::kUpBias || role == Role::kFfnNorm ||
                     role == Role::kFfnPostNorm;
    return mlp == (half_ == nn::Half::kMlp);
  }

  /// Checks the gradients by all frozen matrices and biases of units, without matrices that the level
  /// replaces.
  template <typename Gradient>
  void check_frozen(const std::map<Role, at::Tensor>& found, int64_t layer, const Widths* widths,
                    const nn::LevelRepair* repairs, const Gradient& reference_gradient) const {
    size_t n_expected = 0;
    for (const TensorSpec& tensor : decoder_.spec().tensors) {
      const bool has_units = std::any_of(tensor.axes.begin(), tensor.axes.end(),
                                         [](const AxisUse& use) { return use.space >= 0; });
      const nn::TensorRepair* own = repairs != nullptr ? repairs->find(layer, tensor.role) : nullptr;
      if (tensor.layer != layer || !has_units || !is_of_half(tensor.role)) continue;
      if (own != nullptr && own->weight.defined()) continue;
      CAPTURE(tensor.name);
      ++n_expected;
      REQUIRE(found.count(tensor.role) == 1);
      at::Tensor expected = reference_gradient(reference_.weight(tensor.role, layer));
      const Shape shape = shape_at(tensor, widths != nullptr ? *widths : full_widths(decoder_.spec()));
      for (size_t axis = 0; axis < shape.size(); ++axis)
        expected = expected.narrow(static_cast<int64_t>(axis), 0, shape[axis]);
      REQUIRE((found.at(tensor.role).sizes() == expected.sizes()));
      CHECK(relative_difference(found.at(tensor.role), expected) < 1e-4);
    }
    CHECK(found.size() == n_expected);
  }

  template <typename Gradient, typename Loss>
  void check_own(const nn::LayerRepair& found, const nn::LayerRepair& repairs,
                 const Gradient& reference_gradient, const Loss& loss) const {
    for (const auto& [role, gradients] : found) CHECK(is_of_half(role));
    for (const FoundGradient& each : gradients_of_repairs(repairs, found)) {
      CAPTURE(each.name);
      const at::Tensor expected = reference_gradient(each.tensor);
      REQUIRE(each.gradient.defined() == expected.defined());
      if (!expected.defined()) continue;
      REQUIRE((each.gradient.sizes() == each.tensor.sizes()));
      CHECK(relative_difference(each.gradient, expected) < 1e-4);
      // The derivative along a random direction depends on every element of the gradient.
      const at::Tensor direction = torch::randn(each.tensor.sizes());
      const auto moved = [&](double step) {
        const c10::NoGradGuard no_gradients;
        const at::Tensor before = each.tensor.detach().clone();
        each.tensor.add_(direction, step);
        const double value = loss();
        each.tensor.copy_(before);
        return value;
      };
      const double step = 2e-3, slope = (moved(step) - moved(-step)) / (2 * step);
      CHECK((each.gradient * direction).sum().item<double>() ==
            doctest::Approx(slope).epsilon(0.01).scale(each.gradient.norm().item<double>()));
    }
  }

  nn::Decoder decoder_;
  ReferenceDecoder reference_;
  nn::Half half_;
};

/// Checks a half of every variant, full and narrowed: without repairs, with adapters and biases, and with own
/// weights as well.
inline void check_half_in_every_variant(nn::Half half) {
  std::vector<TinyVariant> variants = tiny_variants();
  for (const TinyVariant& each : peculiar_variants()) variants.push_back(each);
  for (const TinyVariant& variant : variants) {
    CAPTURE(variant.name);
    const HalfCheck check(memory_checkpoint(variant.spec), half);
    const Widths full = full_widths(variant.spec), narrow = half_widths(variant.spec);
    for (const Widths* widths : {static_cast<const Widths*>(nullptr), &narrow}) {
      CAPTURE((widths != nullptr));
      check.run(widths, nullptr);
      for (const bool own_weights : {false, true}) {
        CAPTURE(own_weights);
        nn::LevelRepair repairs =
            random_repairs(variant.spec, widths != nullptr ? *widths : full, own_weights);
        check.run(widths, &repairs);
      }
    }
  }
}

}  // namespace elastify::test
