#include "base/svg_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace elastify {
namespace {

constexpr double kWidth = 720, kHeight = 440, kLeft = 80, kRight = 20, kTop = 50, kBottom = 60;
constexpr double kLegendRow = 20, kLegendLine = 34, kLetter = 7.2;
constexpr size_t kNamesInPlot = 3;  ///< more stand beside it
constexpr std::array<const char*, 10> kColours{"#1f6fb4", "#c8501e", "#2e8b57", "#7b4fa3", "#8a6d1d",
                                               "#444444", "#d6338a", "#19a0b4", "#a01c2c", "#86a81f"};
constexpr std::array<const char*, 6> kDashes{"", "7 4", "2 3", "10 3 2 3", "14 5", "5 2"};

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

/// "400", "20k", "1M".
std::string short_tick(double value) {
  if (value >= 1e9) return fmt::format("{:g}G", value / 1e9);
  if (value >= 1e6) return fmt::format("{:g}M", value / 1e6);
  if (value >= 1e4) return fmt::format("{:g}k", value / 1e3);
  return fmt::format("{:g}", value);
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
  const size_t n = chart.series.size();
  const bool beside = n > kNamesInPlot;
  size_t longest = 0;
  for (const ChartSeries& line : chart.series) longest = std::max(longest, line.name.size());
  const double legend = beside ? kLegendLine + 20 + kLetter * static_cast<double>(longest) : 0;
  const double height =
      std::max(kHeight, kTop + kBottom + (beside ? kLegendRow * static_cast<double>(n) : 0));
  const double right = kWidth - kRight, bottom = height - kBottom;
  const Axis x = fit(chart.series, true, false, kLeft, right);
  const Axis y = fit(chart.series, false, chart.log_y, bottom, kTop);
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
      "height=\"{1:.0f}\" font-family=\"sans-serif\" font-size=\"13\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
      "<text x=\"{2}\" y=\"28\" font-size=\"16\">{3}</text>\n",
      kWidth + legend, height, kLeft, escaped(chart.title));
  for (const double tick : x.ticks())
    svg += fmt::format(
        "<path d=\"M{0:.1f} {1}V{2}\" stroke=\"#e4e4e4\"/><text x=\"{0:.1f}\" y=\"{3}\" "
        "text-anchor=\"middle\">{4:g}</text>\n",
        x.at(tick), kTop, bottom, bottom + 18, tick);
  for (const double tick : y.ticks())
    svg += fmt::format(
        "<path d=\"M{1} {0:.1f}H{2}\" stroke=\"#e4e4e4\"/><text x=\"{3}\" y=\"{4:.1f}\" "
        "text-anchor=\"end\">{5}</text>\n",
        y.at(tick), kLeft, right, kLeft - 8, y.at(tick) + 4, short_tick(tick));
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n", (kLeft + right) / 2,
                     height - 16, escaped(chart.x_label));
  svg += fmt::format("<text transform=\"translate(20 {}) rotate(-90)\" text-anchor=\"middle\">{}</text>\n",
                     (kTop + bottom) / 2, escaped(chart.y_label));
  for (size_t i = 0; i < n; ++i) {
    const ChartSeries& line = chart.series[i];
    const char* colour = kColours[(line.colour < 0 ? i : static_cast<size_t>(line.colour)) % kColours.size()];
    const std::string pattern = kDashes[static_cast<size_t>(line.dash) % kDashes.size()];
    const std::string dash = pattern.empty() ? pattern : fmt::format(" stroke-dasharray=\"{}\"", pattern);
    std::string points, dots;
    for (size_t j = 0; j < std::min(line.x.size(), line.y.size()); ++j) {
      if (!std::isfinite(line.y[j]) || (chart.log_y && line.y[j] <= 0)) continue;
      points += fmt::format("{:.1f},{:.1f} ", x.at(line.x[j]), y.at(line.y[j]));
      dots += fmt::format(
          "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"><title>{}: {:.4g}, "
          "{:.4g}</title></circle>\n",
          x.at(line.x[j]), y.at(line.y[j]), colour, escaped(line.name), line.x[j], line.y[j]);
    }
    svg += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}/>\n{}",
                       points, colour, dash, dots);
    const double row = kTop + 14 + kLegendRow * static_cast<double>(i);
    const double left = beside ? right + 10 : kWidth - 240;
    svg += fmt::format(
        "<path d=\"M{} {}h{}\" stroke=\"{}\" stroke-width=\"3\"{}/><text x=\"{}\" y=\"{}\">{}</text>\n", left,
        row, kLegendLine - 6, colour, dash, left + kLegendLine, row + 4, escaped(line.name));
  }
  return svg + "</svg>\n";
}

}  // namespace elastify
