#include "recover/closed_form.h"

#include <torch/torch.h>

#include <algorithm>

#include "base/error.h"
#include "base/progress.h"
#include "nn/torch_error.h"

namespace elastify::recover {
namespace {

struct Named {
  Compensation compensation;
  std::string_view name;
};
constexpr Named kNames[] = {{Compensation::kNone, "none"},       {Compensation::kBias, "bias"},
                            {Compensation::kAdapter, "adapter"}, {Compensation::kAdapterBias, "adapter+bias"},
                            {Compensation::kBaked, "baked"},     {Compensation::kBakedBias, "baked+bias"}};

bool has_bias(Compensation c) {
  return c == Compensation::kBias || c == Compensation::kAdapterBias || c == Compensation::kBakedBias;
}
bool has_adapter(Compensation c) {
  return c == Compensation::kAdapter || c == Compensation::kAdapterBias;
}
bool is_baked(Compensation c) {
  return c == Compensation::kBaked || c == Compensation::kBakedBias;
}

/// Sums over tokens for one projection: inputs x [k] and targets y [D], float64.
class Regression {
 public:
  Regression(int64_t n_inputs, int64_t n_outputs)
      : xx_(zeros({n_inputs, n_inputs})),
        xy_(zeros({n_inputs, n_outputs})),
        x_(zeros({n_inputs})),
        y_(zeros({n_outputs})) {}

  /// \param x [rows, k], y [rows, D]
  void add(const at::Tensor& x, const at::Tensor& y) {
    const at::Tensor a = x.to(at::kFloat), b = y.to(at::kFloat);
    xx_ += at::mm(a.t(), a).to(at::kCPU, at::kDouble);
    xy_ += at::mm(a.t(), b).to(at::kCPU, at::kDouble);
    x_ += a.sum(0, false, at::kDouble).to(at::kCPU);
    y_ += b.sum(0, false, at::kDouble).to(at::kCPU);
    n_ += static_cast<double>(x.size(0));
  }

  /// \param weight  as it is, [D, k]
  nn::ProjectionRepair solve(const at::Tensor& weight, const ClosedFormOptions& options) const {
    const at::Tensor now = weight.to(at::kCPU, at::kDouble).t();  // [k, D]
    const at::Tensor mean_x = x_ / n_, mean_y = y_ / n_;
    at::Tensor moments = xx_ / n_, cross = xy_ / n_;
    if (has_bias(options.compensation)) {
      moments = moments - at::outer(mean_x, mean_x);
      cross = cross - at::outer(mean_x, mean_y);
    }
    nn::ProjectionRepair repair;
    at::Tensor fitted = now;
    if (options.compensation != Compensation::kBias) {
      const double ridge = options.ridge * (xx_.diagonal().mean().item<double>() / n_);
      const at::Tensor regular = moments + ridge * at::eye(moments.size(0), moments.options());
      const auto [factor, failed] = at::linalg_cholesky_ex(regular);
      if (failed.item<int64_t>() != 0) fail("the inputs' moments are singular; a larger ridge helps");
      // (S + ridge) delta = C - S W_S: the ridge pulls the change to nothing, not the weights.
      at::Tensor delta = at::cholesky_solve(cross - at::mm(moments, now), factor);
      if (has_adapter(options.compensation)) {
        // The best rank-r change is the projection of the change's outputs onto their leading directions.
        const at::Tensor outputs = at::mm(delta.t(), at::mm(regular, delta));  // [D, D]
        const auto [values, vectors] = at::linalg_eigh(outputs);
        const int64_t rank = std::min({options.rank, delta.size(0), delta.size(1)});
        const at::Tensor leading = vectors.narrow(1, vectors.size(1) - rank, rank);  // [D, r]
        const at::Tensor a = at::mm(delta, leading);                                 // [k, r]
        repair.a = a.t().contiguous().to(weight.options());
        repair.b = leading.contiguous().to(weight.options());
        delta = at::mm(a, leading.t());
      }
      fitted = now + delta;
      if (is_baked(options.compensation)) repair.weight = fitted.t().contiguous().to(weight.options());
    }
    if (has_bias(options.compensation))
      repair.bias = (mean_y - at::mv(fitted.t(), mean_x)).to(weight.options());
    return repair;
  }

 private:
  static at::Tensor zeros(at::IntArrayRef shape) {
    return at::zeros(shape, at::TensorOptions().dtype(at::kDouble));
  }

  at::Tensor xx_, xy_, x_, y_;
  double n_ = 0;
};

at::Tensor rows_of(const at::Tensor& x) {
  return x.reshape({-1, x.size(-1)});
}

/// Rows of y less the constant that the projection adds anyway.
at::Tensor without(const at::Tensor& y, const at::Tensor& bias) {
  return bias.defined() ? rows_of(y) - bias : rows_of(y);
}

}  // namespace

std::string_view name_of(Compensation compensation) {
  for (const Named& known : kNames)
    if (known.compensation == compensation) return known.name;
  fail("unknown compensation {}", static_cast<int>(compensation));
}

Compensation compensation_named(std::string_view name) {
  std::string known;
  for (const Named& one : kNames) {
    if (one.name == name) return one.compensation;
    known += (known.empty() ? "" : ", ") + std::string(one.name);
  }
  throw UsageError(fmt::format("unknown compensation '{}'; known are {}", name, known));
}

std::vector<nn::LayerRepair> fit_level(const nn::Decoder& decoder, const std::vector<at::Tensor>& batches,
                                       const Widths& widths, const ClosedFormOptions& options) {
  const ModelSpec& spec = decoder.spec();
  std::vector<nn::LayerRepair> repairs(static_cast<size_t>(spec.n_layers));
  if (options.compensation == Compensation::kNone) return repairs;
  if (batches.empty()) fail("closed-form compensation needs calibration data");
  return nn::with_torch_errors([&] {
    const c10::NoGradGuard no_gradients;
    nn::ForwardOptions level;
    level.widths = &widths;
    level.repairs = &repairs;
    int64_t n_tokens = 0;
    for (const at::Tensor& ids : batches) n_tokens += ids.numel();
    Progress progress("compensation", n_tokens * spec.n_layers, "layer-tokens");
    // Residual streams of the full model and of the level, by batch.
    std::vector<at::Tensor> full, narrow;
    for (const at::Tensor& ids : batches) {
      full.push_back(decoder.embed(ids));
      narrow.push_back(full.back());
    }
    for (int64_t l = 0; l < spec.n_layers; ++l) {
      nn::LayerRepair& repair = repairs[static_cast<size_t>(l)];
      const at::Tensor o = decoder.projection(l, Site::kAttnOut, widths);
      const at::Tensor down = decoder.projection(l, Site::kFfnDown, widths);
      // Where a half is left out, there is nothing to regress on.
      const bool attends = o.size(1) > 0, has_mlp = down.size(1) > 0;
      // What the full model adds to its stream in the two halves, less what is wrong with the stream already.
      std::vector<nn::LayerTrace> traces;
      Regression attention(o.size(1), o.size(0)), mlp(down.size(1), down.size(0));
      for (size_t b = 0; b < batches.size(); ++b) {
        nn::LayerTrace whole = decoder.trace(l, full[b]);
        const at::Tensor& base = options.whole_stream ? narrow[b] : full[b];
        if (attends)
          attention.add(rows_of(decoder.trace(l, narrow[b], level).attention),
                        without(whole.middle - base, decoder.projection_bias(l, Site::kAttnOut)));
        nn::LayerTrace kept;
        kept.middle = whole.middle;
        kept.output = whole.output;
        traces.push_back(std::move(kept));
      }
      if (attends) repair.attention_out = attention.solve(o, options);
      for (size_t b = 0; has_mlp && b < batches.size(); ++b) {
        const nn::LayerTrace part = decoder.trace(l, narrow[b], level);
        const at::Tensor& base = options.whole_stream ? part.middle : traces[b].middle;
        mlp.add(rows_of(decoder.site_input(l, Site::kFfnDown, part)),
                without(traces[b].output - base, decoder.projection_bias(l, Site::kFfnDown)));
      }
      if (has_mlp) repair.down = mlp.solve(down, options);
      for (size_t b = 0; b < batches.size(); ++b) {
        full[b] = traces[b].output;
        narrow[b] = options.sequential ? decoder.layer(l, narrow[b], level) : full[b];
        progress.advance(batches[b].numel());
      }
    }
    return repairs;
  });
}

}  // namespace elastify::recover
