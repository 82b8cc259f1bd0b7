#include "base/svg_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace elastify {
namespace {

constexpr double kWidth = 720, kHeight = 440, kLeft = 80, kRight = 20, kTop = 50, kBottom = 60;
constexpr std::array<const char*, 6> kColours{"#1f6fb4", "#c8501e", "#2e8b57",
                                              "#7b4fa3", "#8a6d1d", "#444444"};

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '&')
      out += "&amp;";
    else
      out += c;
  }
  return out;
}

/// An axis: data range to pixels, with round tick values.
struct Axis {
  double low, high, from, to;
  bool log;

  double at(double value) const {
    const double a = log ? std::log10(low) : low, b = log ? std::log10(high) : high;
    return from + (to - from) * ((log ? std::log10(value) : value) - a) / (b - a);
  }
  std::vector<double> ticks() const {
    std::vector<double> values;
    if (log) {
      const bool wide = high / low > 1000;
      for (double decade = std::pow(10, std::floor(std::log10(low))); decade <= high; decade *= 10)
        for (const double step : {1.0, 2.0, 5.0})
          if (const double value = decade * step; (step == 1 || !wide) && value >= low && value <= high)
            values.push_back(value);
      return values;
    }
    const double rough = (high - low) / 6, power = std::pow(10, std::floor(std::log10(rough)));
    const double step = power * (rough / power > 5 ? 10 : rough / power > 2 ? 5 : rough / power > 1 ? 2 : 1);
    for (double value = std::ceil(low / step) * step; value <= high + step * 1e-9; value += step)
      values.push_back(value);
    return values;
  }
};

Axis fit(const std::vector<ChartSeries>& series, bool of_x, bool log, double from, double to) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const auto& line : series)
    for (const double value : of_x ? line.x : line.y) {
      if (!std::isfinite(value) || (log && value <= 0)) continue;
      low = std::min(low, value);
      high = std::max(high, value);
    }
  if (!(low <= high)) low = log ? 1 : 0, high = log ? 10 : 1;
  if (log) return {low / 1.1, high * 1.1, from, to, true};
  const double margin = high > low ? 0.04 * (high - low) : std::max(std::abs(low), 1.0) * 0.1;
  return {low - margin, high + margin, from, to, false};
}

}  // namespace

std::string to_svg(const Chart& chart) {
  const Axis x = fit(chart.series, true, false, kLeft, kWidth - kRight);
  const Axis y = fit(chart.series, false, chart.log_y, kHeight - kBottom, kTop);
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
      "<text x=\"{2}\" y=\"28\" font-size=\"16\">{3}</text>\n",
      kWidth, kHeight, kLeft, escaped(chart.title));
  for (const double tick : x.ticks())
    svg += fmt::format(
        "<path d=\"M{0:.1f} {1}V{2}\" stroke=\"#e4e4e4\"/><text x=\"{0:.1f}\" y=\"{3}\" "
        "text-anchor=\"middle\">{4:g}</text>\n",
        x.at(tick), kTop, kHeight - kBottom, kHeight - kBottom + 18, tick);
  for (const double tick : y.ticks())
    svg += fmt::format(
        "<path d=\"M{1} {0:.1f}H{2}\" stroke=\"#e4e4e4\"/><text x=\"{3}\" y=\"{4:.1f}\" "
        "text-anchor=\"end\">{5:g}</text>\n",
        y.at(tick), kLeft, kWidth - kRight, kLeft - 8, y.at(tick) + 4, tick);
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
                     (kLeft + kWidth - kRight) / 2, kHeight - 16, escaped(chart.x_label));
  svg += fmt::format("<text transform=\"translate(20 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
                     (kTop + kHeight - kBottom) / 2, escaped(chart.y_label));
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const ChartSeries& line = chart.series[i];
    const char* colour = kColours[i % kColours.size()];
    std::string points, dots;
    for (size_t j = 0; j < std::min(line.x.size(), line.y.size()); ++j) {
      if (!std::isfinite(line.y[j]) || (chart.log_y && line.y[j] <= 0)) continue;
      points += fmt::format("{:.1f},{:.1f} ", x.at(line.x[j]), y.at(line.y[j]));
      dots += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"/>", x.at(line.x[j]),
                          y.at(line.y[j]), colour);
    }
    svg += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>{}\n", points,
                       colour, dots);
    const double row = kTop + 14 + 20 * static_cast<double>(i);
    svg += fmt::format(
        "<path d=\"M{} {}h24\" stroke=\"{}\" stroke-width=\"3\"/><text x=\"{}\" y=\"{}\">{}</text>\n",
        kWidth - 240, row, colour, kWidth - 208, row + 4, escaped(line.name));
  }
  return svg + "</svg>\n";
}

}  // namespace elastify
